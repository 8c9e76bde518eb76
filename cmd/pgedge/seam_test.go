package main

import (
	"context"
	"testing"

	"pgedge/audit"
	"pgedge/cluster"
	"pgedge/engine"
	"pgedge/revoke"
)

// recorder is an engine that notes its orders.
type recorder struct {
	dataPlane // what these tests do not call
	keys      []string
}

func (r *recorder) Cut(o revoke.Order) { r.keys = append(r.keys, o.Key) }
func (r *recorder) SessionCount() int  { return 3 }
func (r *recorder) CarryOutCancel([]byte) bool {
	return false
}
func (r *recorder) Impact(context.Context, []revoke.Scope) []revoke.SessionImpact {
	return nil
}
func (r *recorder) Freeze() {}
func (r *recorder) Thaw()   {}
func (r *recorder) Drop()   {}
func (r *recorder) Sessions(func(revoke.SessionInfo) bool) []revoke.SessionInfo {
	return make([]revoke.SessionInfo, 3)
}

func TestOrdersThatComeBeforeTheEngineAreCarriedOutInTheirOrder(t *testing.T) {
	var l lateEngine
	if l.SessionCount() != 0 || l.Sessions(cluster.SessionFilter{}) != nil {
		t.Error("there are sessions before there is an engine")
	}
	l.Cut(revoke.Order{Key: "a"})
	l.Cut(revoke.Order{Key: "b"})
	var r recorder
	if !l.attach(&r) {
		t.Error("orders were lost")
	}
	l.Cut(revoke.Order{Key: "c"})
	if got := len(r.keys); got != 3 || r.keys[0] != "a" || r.keys[1] != "b" || r.keys[2] != "c" {
		t.Errorf("got %v", r.keys)
	}
	if l.SessionCount() != 3 || len(l.Sessions(cluster.SessionFilter{})) != 3 {
		t.Error("the engine's sessions are not seen")
	}
}

func TestANodeThatLostAnOrderDoesNotServe(t *testing.T) {
	var l lateEngine
	l.early = make([]revoke.Order, maxEarlyOrders)
	l.Cut(revoke.Order{})
	if l.attach(&recorder{}) {
		t.Error("a lost order was not noticed")
	}
}

// The verb stood where the reason of an end stands, and the detail ended in a space when no reason was given.
func TestARevocationInTheTrailHasItsVerbInItsOwnPlace(t *testing.T) {
	r := auditRecord(engine.AuditEvent{Kind: audit.KindRevocation, Reason: "revoke", Detail: "principal.alice seq 7 ", Revocation: "id"})
	if r.Verb != "revoke" || r.Reason != "" || r.Detail != "principal.alice seq 7" || r.Revocation != "id" {
		t.Errorf("got %+v", r)
	}
	r = auditRecord(engine.AuditEvent{Kind: audit.KindEnd, Reason: "client_gone"})
	if r.Verb != "" || r.Reason != "client_gone" {
		t.Errorf("got %+v", r)
	}
}
