package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// withScenarios replaces the scenarios for one test. The first fails; both note that they were run.
func withScenarios(t *testing.T) *[]string {
	t.Helper()
	var ran []string
	add := func(name string, err error) scenario {
		return scenario{"P1", name, func(fs *flag.FlagSet) func(context.Context, *run) error {
			if name == "second" {
				fs.Int("clients", 1, "only of this one")
			}
			return func(_ context.Context, r *run) error {
				ran = append(ran, name)
				if err := os.WriteFile(filepath.Join(r.dir, "left"), nil, 0o600); err != nil {
					return err
				}
				r.sample(name, "case", subject, "cpu", "us", 1, 2, 3)
				return err
			}
		}}
	}
	oldScenarios, oldOrder := scenarios, order
	t.Cleanup(func() { scenarios, order = oldScenarios, oldOrder })
	scenarios = map[string]scenario{"first": add("first", errors.New("broken")), "second": add("second", nil)}
	order = []string{"first"}
	return &ran
}

func TestAllGoesOnAfterAScenarioThatFails(t *testing.T) {
	ran := withScenarios(t)
	out := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	if code := command(t.Context(), []string{"all", "-quick", "-out", out}); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if want := []string{"first", "second"}; !slices.Equal(*ran, want) {
		t.Errorf("ran %v, want %v", *ran, want)
	}
	if files, _ := filepath.Glob(filepath.Join(out, "*")); !slices.Equal(files, []string{filepath.Join(out, "second.json")}) {
		t.Errorf("results: %v, want those of the second alone", files)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWrongUsageRunsNothing(t *testing.T) {
	ran := withScenarios(t)
	for _, args := range [][]string{{"all", "-clients", "3"}, {"all", "again"}, {"second", "-nonsense"}, {"third"}} {
		if code := command(t.Context(), args); code != 2 {
			t.Errorf("%v: exit code %d, want 2", args, code)
		}
	}
	if code := command(t.Context(), []string{"second", "-h"}); code != 0 {
		t.Errorf("-h: exit code %d, want 0", code)
	}
	if len(*ran) > 0 {
		t.Errorf("ran %v", *ran)
	}
}
