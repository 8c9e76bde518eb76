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

func countOrUnknown(n *int) string {
	if n == nil {
		return "unknown"
	}
	return fmt.Sprint(*n)
}
