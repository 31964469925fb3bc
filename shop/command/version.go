package command

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"shop.example/platform/telemetry"
	"shop.example/shop/cli"
)

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print what this program was built from",
		Long: `Prints the version, the commit with its time, whether the source had changes that are not in it, and
the version of Go. Include it in a report about a problem.`,
		Example: "  shop version\n  shop version --json",
		Args:    cli.Args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, _ := debug.ReadBuildInfo()
			return printVersion(cmd.OutOrStdout(), versionOf(info), asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// versionFlag makes --version say what the command version says.
func versionFlag(root *cobra.Command) {
	info, _ := debug.ReadBuildInfo()
	var text strings.Builder
	_ = printVersion(&text, versionOf(info), false) // a builder takes everything
	root.Version = strings.TrimSpace(text.String())
	root.SetVersionTemplate("{{.Version}}\n")
	root.InitDefaultVersionFlag()
}

// version is what a build knows about itself. Fields that it does not know are empty.
type version struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Time     string `json:"time,omitempty"` // of the commit, RFC 3339
	Modified bool   `json:"modified"`       // built from a tree with changes
	Go       string `json:"go"`
}

func versionOf(info *debug.BuildInfo) version {
	if info == nil { // built without module support
		return version{Version: cmp.Or(telemetry.Release, "unknown")}
	}
	v := version{Version: cmp.Or(telemetry.Release, info.Main.Version, "unknown"), Go: info.GoVersion}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func printVersion(out io.Writer, v version, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(v)
	}
	fmt.Fprintf(out, "shop %s\n", v.Version)
	if v.Commit != "" {
		changed := ""
		if v.Modified {
			changed = ", with changes"
		}
		fmt.Fprintf(out, "commit %s of %s%s\n", v.Commit, v.Time, changed)
	}
	fmt.Fprintln(out, v.Go)
	return nil
}
