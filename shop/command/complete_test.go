package command

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	inventoryv1 "shop.example/gen/shop/inventory/v1"
)

// Where bash's own package for completion is not installed, this stands in for what cobra's script takes from it.
const bashCompletion = `
_get_comp_words_by_ref() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur=${COMP_WORDS[COMP_CWORD]}; prev=${COMP_WORDS[COMP_CWORD-1]}; }
compopt() { :; }
shop() { printf '%s\n' "$OFFERED" :4; }
COMP_WORDS=(shop order place --item "$1") COMP_CWORD=4 COMP_LINE="shop order place --item $1" COMP_TYPE=9
COMP_POINT=${#COMP_LINE}
__start_shop
printf '%s\n' "${COMPREPLY[@]}"
`

// Bash completed Mo to "Mouse ", with the blank, and never to Mouse Pad.
func TestCompletion_AProductWhoseNameBeginsLikeAnotherIsReachedInBash(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatalf("make needs it, too: %v", err)
	}
	var script bytes.Buffer
	root := Root()
	root.SetOut(&script)
	root.SetArgs([]string{"completion", "bash"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	offered := strings.Join(namesOf([]*inventoryv1.Item{{ProductName: "Laptop"}, {ProductName: "Mouse"}, {ProductName: "Mouse Pad"}}), "\n")
	for begun, want := range map[string]string{"Mo": "Mouse\nMouse Pad\n", `Mouse\ `: "Mouse\\ Pad\n", "La": "Laptop\n"} {
		cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", script.String()+bashCompletion, "bash", begun)
		cmd.Env = append(cmd.Environ(), "OFFERED="+offered)
		if got, err := cmd.Output(); err != nil || string(got) != want {
			t.Errorf("%s is completed to %q, want %q: %v", begun, got, want, err)
		}
	}
}
