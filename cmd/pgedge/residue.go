package main

import (
	"fmt"
	"io"

	"pgedge/revoke"
)

// printResidue says what the responsible node found in the database and did there.
func printResidue(w io.Writer, r *revoke.Residue) {
	if r == nil {
		return
	}
	login := "unknown"
	if r.RoleCanLogin != nil {
		login = map[bool]string{true: "yes", false: "no"}[*r.RoleCanLogin]
	}
	fmt.Fprintf(w, "  left in the database: prepared transactions %s, replication slots in use %s, direct sessions %s, role can log in: %s\n",
		countOrUnknown(r.PreparedXacts), countOrUnknown(r.ReplicationSlots), countOrUnknown(r.DirectSessions), login)
	for _, s := range r.StoppedFor {
		fmt.Fprintf(w, "  stopped in the database for node %s (boot %s), which could not: %s", s.Node, s.Boot, count(s.Backends, "backend", "backends"))
		if s.NotGone > 0 {
			fmt.Fprintf(w, ", %d not seen gone", s.NotGone)
		}
		fmt.Fprintln(w)
	}
	if s := r.Swept; s != nil {
		nologin := ""
		if s.NoLogin {
			nologin = ", and the role set NOLOGIN until it is reinstated"
		}
		fmt.Fprintf(w, "  swept: %s ended%s\n", count(s.DirectSessions, "direct session", "direct sessions"), nologin)
	}
	if r.Why != "" {
		fmt.Fprintf(w, "  not known or not done: %s\n", printable(r.Why))
	}
}

// printSwept says in a verdict what a sweep has ended, and warns of what it could not do: the verdict is about sessions
// of pgedge alone. It returns the number of sessions ended.
func (a *app) printSwept(r revoke.Receipt) int {
	if r.Residue == nil || r.Residue.Swept == nil {
		return 0
	}
	n := r.Residue.Swept.DirectSessions
	if n > 0 {
		fmt.Fprintf(a.io.out, "  %-20s  %s past pgedge ended\n", r.Node, count(n, "session", "sessions"))
	}
	if r.Residue.Why != "" {
		fmt.Fprintf(a.io.err, "warning: the sweep of %s is not complete: %s\n", r.Node, printable(r.Residue.Why))
	}
	return n
}

func countOrUnknown(n *int) string {
	if n == nil {
		return "unknown"
	}
	return fmt.Sprint(*n)
}
