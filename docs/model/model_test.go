package model

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The short run of `make model`: the model holds in every state that it can reach, and the checker sees what is broken
// on purpose.
func TestTheModelHoldsAndItsBrokenVariantsAreCaught(t *testing.T) {
	if _, err := exec.LookPath("spin"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("spin is missing, so the model of the protocol is not checked")
		}
		fmt.Fprintln(os.Stderr, "model: spin is missing, so the model of the protocol is NOT CHECKED (Debian: apt-get install spin)")
		t.Skip("spin is missing")
	}
	out, err := exec.Command("../../tools/model.sh", "short").CombinedOutput()
	if err != nil {
		t.Fatalf("tools/model.sh short: %v\n%s", err, out)
	}
	// A list of variants that has lost its lines would hold as well.
	for _, want := range []string{
		"ok    login base:", "ok    facts base-two-nodes:", "ok    lease base:",
		"ok    login check-before-register: caught", "ok    lease fresh-without-nothing-pending: caught",
		"ok    facts negative-look-up-drops: caught", "ok    facts suspend-stored-as-revoke: caught",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
}
