package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestEveryCommandExplainsItself(t *testing.T) {
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			check(sub)
		}
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" || !c.Runnable() {
			return
		}
		if c.Short == "" || c.Long == "" || !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s lacks a description or an example", c.CommandPath())
		}
		if c.GroupID == "" && c.Parent() == c.Root() {
			t.Errorf("%s is in no group of the help", c.CommandPath())
		}
	}
	a := &app{}
	check(a.rootCommand())
}

func TestWrongUsageIsExitCodeTwo(t *testing.T) {
	t.Setenv("PGEDGE_STATE_DIR", t.TempDir())
	t.Setenv("PGEDGE_UPSTREAM", "")
	for args, want := range map[string]string{
		"frobnicate":                       `unknown command "frobnicate"`,
		"revoke":                           "nothing to revoke",
		"revoke --nope alice":              "unknown flag: --nope",
		"revoke alice --all":               "--all stands alone",
		"revoke --all":                     "--all needs --yes",
		"revoke --role ":                   "name",
		"revoke alice --wait 5s --no-wait": "exclude each other",
		"revoke alice --wait -5s":          "out of range",
		"revoke alice -o xml":              "neither text nor json",
		"revoke alice --reason " + long:    "longer than 1000 bytes",
		"suspend alice":                    "--for",
		"suspend alice --for 0s":           "out of range",
		"suspend alice --for soon":         "invalid argument",
		"reinstate":                        "nothing to reinstate",
		"kill":                             "nothing to kill",
		"sessions alice":                   "takes no argument",
		"receipts --since 0s":              "out of range",
		"kill --session bad!id":            "is no session id",
		"kill --session edge-A":            "is no session id",
		"serve":                            "no upstream",
		"receipts shw":                     "unknown command",
		"receipts show":                    "exactly one ID",
		"receipts show not.an.id":          "not a revocation id",
		"check-config":                     "exactly one FILE",
		"serve --log-format xml --upstream postgres:": "auto, text and json",
		"version now":                       "takes no argument",
		"why alice":                         "pgedge why: not supported in this version",
		"cluster":                           "say what to do",
		"cluster init now":                  "takes no argument",
		"cluster init --replicas 0":         "not between 1 and 5",
		"cluster init --replicas six":       "invalid argument",
		"nodes --nats nats://x --context y": "--context says where the cluster is",
		"nodes --context ../y":              "no name of a context",
		"receipts export --since 0d":        "--since 0s: is out of range",
		"receipts verify":                   "takes exactly one FILE",
		"nodes drain":                       "exactly one NODE",
		"nodes drain edge.a":                "is no node id",
		"nodes drain a --wait 1s --no-wait": "exclude each other",
		"nodes drain a --wait 25h":          "out of range",
		"nodes forget":                      "exactly one NODE",
		"nodes forget edge.a --yes":         "is no node id",
		"nodes forget a --boot b!":          "is no boot id",
		"nodes forget edge-a":               "needs --yes",
		"sessions --watch alice":            "takes no argument",
	} {
		var out, errs bytes.Buffer
		code := run(context.Background(), strings.Split(args, " "), stdio{in: strings.NewReader(""), out: &out, err: &errs})
		if code != exitUsage || !strings.Contains(errs.String(), want) || out.Len() > 0 {
			t.Errorf("pgedge %s: exit code %d, stdout %q, stderr %q", args, code, out.String(), errs.String())
		}
	}
}

// Whoever takes selectors for filters ends more sessions than was meant.
func TestTheHelpOfEveryVerbSaysThatSelectorsAddUp(t *testing.T) {
	for _, verb := range []string{"revoke", "suspend", "kill", "reinstate"} {
		var out, errs bytes.Buffer
		code := run(context.Background(), []string{verb, "--help"}, stdio{in: strings.NewReader(""), out: &out, err: &errs})
		if code != 0 || !strings.Contains(out.String(), "Selectors add up") {
			t.Errorf("%s --help: exit code %d\n%s", verb, code, out.String())
		}
	}
}

var long = strings.Repeat("x", maxReasonBytes+1)
