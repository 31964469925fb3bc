package command

import (
	"bytes"
	"encoding/json"
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersion_SaysWhatTheBuildKnows(t *testing.T) {
	t.Parallel()
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: "v0.0.0-20261128100000-0123456789ab"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.time", Value: "2026-11-28T10:00:00Z"}, {Key: "vcs.modified", Value: "true"},
	}}
	var out bytes.Buffer
	if err := printVersion(&out, versionOf(info), false); err != nil {
		t.Fatal(err)
	}
	want := "shop v0.0.0-20261128100000-0123456789ab\ncommit 0123456789abcdef of 2026-11-28T10:00:00Z, with changes\ngo1.26.8\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	for name, info := range map[string]*debug.BuildInfo{"no information": nil, "no version": {GoVersion: "go1.26.8"}} {
		if v := versionOf(info); v.Version != "unknown" || v.Commit != "" {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestVersionCommand_PrintsJSONForScripts(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	root := Root()
	root.SetOut(&out)
	root.SetArgs([]string{"version", "--json"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	var v version
	if err := json.Unmarshal(out.Bytes(), &v); err != nil || v.Version == "" || !strings.HasPrefix(v.Go, "go1.") {
		t.Errorf("%v: %s", err, &out)
	}
}
