package main

import (
	"fmt"
	"strings"

	"pgedge/revoke"
)

// drillJSON is the last line of a drill.
type drillJSON struct {
	Drill    string         `json:"drill"`
	Canary   string         `json:"canary"`
	OK       bool           `json:"ok"`
	Verdict  revoke.Verdict `json:"verdict,omitempty"`
	Logins   int            `json:"logins"`
	Failed   int            `json:"failed"`
	Unproven []string       `json:"unproven"` // nodes that took no part, and why
}

// report prints what every listener has shown, and returns the exit code as an error.
func (d *drill) report() error {
	failed := 0
	for _, l := range d.lines {
		if len(l.Failed) > 0 {
			failed++
		}
	}
	code := d.verdict.ExitCode()
	switch {
	case failed > 0:
		code = exitFailed
	case len(d.unproven) > 0:
		code = exitUnproven
	}
	var err error
	if d.app.json() {
		err = d.printJSON(failed, code)
	} else {
		err = d.print(failed)
	}
	if err != nil {
		return err
	}
	return exitSilently(code)
}

func (d *drill) printJSON(failed, code int) error {
	for _, l := range d.lines {
		if err := d.app.printJSON(l); err != nil {
			return err
		}
	}
	return d.app.printJSON(drillJSON{d.id, d.scope.Name, code == exitDone, d.verdict, len(d.lines), failed, append([]string{}, d.unproven...)})
}

func (d *drill) print(failed int) error {
	w := d.app.io.out
	t := newTable(w, "NODE", "LISTENER", "LOGIN", "CUT", "CLOSED", "GONE", "CLIENT SAW", "NEW LOGIN", "REINSTATED", "RESULT")
	for _, l := range d.lines {
		saw, refused, back, result := "", "", "", "held"
		if l.ClientMS != nil {
			saw = strings.TrimSpace(l.SawState + " " + milliseconds(*l.ClientMS))
		}
		if l.Refused != "" {
			refused = "refused " + l.Refused
		}
		if l.BackMS > 0 {
			back = "in " + milliseconds(l.BackMS)
		}
		login := ""
		if l.Listener != "" {
			login = milliseconds(l.LoginMS)
		}
		if len(l.Failed) > 0 {
			result = "FAILED: " + strings.Join(l.Failed, "; ")
		}
		t.row(l.Node, l.Listener, login, orDash(l.CutMS), orDash(l.ClosedMS), orDash(l.VerifiedMS), saw, refused, back, result)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, u := range d.unproven {
		fmt.Fprintf(w, "not proven: %s\n", printable(u))
	}
	if d.verdict != "" {
		fmt.Fprintf(w, "%s: %s\n", d.verdict, explain(d.verdict))
	}
	logins := count(len(d.lines), "listener", "listeners")
	var err error
	switch {
	case failed > 0:
		_, err = fmt.Fprintf(w, "the drill FAILED: %d of %s\n", failed, logins)
	case len(d.unproven) > 0 || d.verdict != revoke.Complete:
		_, err = fmt.Fprintf(w, "not everything was proven on %s\n", logins)
	default:
		_, err = fmt.Fprintf(w, "everything held on %s\n", logins)
	}
	return err
}

func orDash(ms *float64) string {
	if ms == nil {
		return ""
	}
	return milliseconds(*ms)
}
