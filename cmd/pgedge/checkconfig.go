package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"pgedge/cmd/pgedge/config"
	"pgedge/engine"
)

type problemJSON struct {
	Level string `json:"level"` // error | warning
	Place string `json:"place"`
	Line  int    `json:"line,omitempty"`
	Key   string `json:"key,omitempty"`
	Text  string `json:"text"`
}

type checkJSON struct {
	File     string `json:"file"`
	OK       bool   `json:"ok"`
	Errors   int    `json:"errors"`
	Warnings int    `json:"warnings"`
}

func (a *app) checkConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check-config FILE",
		Short: "Report every problem of a configuration file, with its line",
		Long: `Read a configuration file as serve would, and report everything that is wrong with it at once: unknown keys,
bad values, and keys that this version does not support. Nothing is started and no server is asked; ${NAME}
references and secret files are resolved. PGEDGE_* overrides of this shell are not applied.

The exit code is 0 when serve would start with this file, and 1 otherwise. Warnings do not change it.`,
		Example: "  pgedge check-config /etc/pgedge/pgedge.yaml\n  pgedge check-config pgedge.yaml -o json",
		GroupID: groupNode,
		Args:    oneArg("FILE"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, report := config.Load(config.Sources{File: args[0], CheckUpstream: checkUpstream})
			if a.json() {
				return a.checkConfigJSON(args[0], report)
			}
			for _, p := range report.Errors {
				fmt.Fprintln(a.io.out, p)
			}
			for _, p := range report.Warnings {
				fmt.Fprintln(a.io.out, "warning:", p)
			}
			if n := len(report.Errors); n > 0 {
				return fmt.Errorf("%s: %s", args[0], count(n, "error", "errors"))
			}
			cfg.Summary(a.io.out)
			fmt.Fprintf(a.io.out, "%s: ok, %s\n", args[0], count(len(report.Warnings), "warning", "warnings"))
			return nil
		},
	}
}

func (a *app) checkConfigJSON(file string, report *config.Report) error {
	for _, level := range []string{"error", "warning"} {
		ps := report.Errors
		if level == "warning" {
			ps = report.Warnings
		}
		for _, p := range ps {
			if err := a.printJSON(problemJSON{level, p.Place(), p.Line(), p.Key, p.Text}); err != nil {
				return err
			}
		}
	}
	ok := len(report.Errors) == 0
	if err := a.printJSON(checkJSON{file, ok, len(report.Errors), len(report.Warnings)}); err != nil {
		return err
	}
	if !ok {
		return exitSilently(exitFailed)
	}
	return nil
}

func checkUpstream(url string) error {
	_, err := engine.ParseUpstream(url)
	return err
}
