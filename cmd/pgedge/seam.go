package main

import (
	"context"
	"errors"
	"strings"
	"sync"

	"pgedge/audit"
	"pgedge/cluster"
	"pgedge/engine"
	"pgedge/revoke"
)

// maxEarlyOrders bounds the orders that wait for the engine. It is made within milliseconds of the cluster's start;
// more than this many facts in that time is not a start but a flood, and the node is better restarted.
const maxEarlyOrders = 100_000

// dataPlane is what lateEngine needs of the engine.
type dataPlane interface {
	Cut(revoke.Order)
	Sessions(keep func(revoke.SessionInfo) bool) []revoke.SessionInfo
	SessionCount() int
	CarryOutCancel(request []byte) (known bool)
	Impact(ctx context.Context, scopes []revoke.Scope) []revoke.SessionImpact
	Freeze()
	Thaw()
	Drop()
	Upstreams() map[string]revoke.UpstreamPresence
	Claims(roles []string) []revoke.Claim
	Sweep(ctx context.Context, server string, pass revoke.SweepPass) ([]revoke.SweepOutcome, error)
	RestoreLogins(ctx context.Context, server string, may func(string, revoke.LoginMark) bool) ([]string, error)
}

var _ dataPlane = (*engine.Engine)(nil)

// lateEngine lets the cluster start before the engine that it gives orders to, since the engine in turn needs the
// cluster's table. Orders that come in between are kept and carried out in their order.
type lateEngine struct {
	mu    sync.Mutex
	eng   dataPlane
	early []revoke.Order
	lost  bool
}

var _ cluster.Engine = (*lateEngine)(nil)

// attach hands over what has come so far. It reports false when orders were lost, and the node must not serve.
func (l *lateEngine) attach(e dataPlane) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.early {
		e.Cut(o)
	}
	l.early, l.eng = nil, e
	return !l.lost
}

// Cut implements cluster.Engine.
func (l *lateEngine) Cut(o revoke.Order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.eng != nil:
		l.eng.Cut(o)
	case len(l.early) < maxEarlyOrders:
		l.early = append(l.early, o)
	default:
		l.lost = true
	}
}

func (l *lateEngine) engine() dataPlane {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.eng
}

// Sessions implements cluster.Engine.
func (l *lateEngine) Sessions(f cluster.SessionFilter) []revoke.SessionInfo {
	e := l.engine()
	if e == nil {
		return nil
	}
	return e.Sessions(f.Match)
}

// SessionCount implements cluster.Engine.
func (l *lateEngine) SessionCount() int {
	e := l.engine()
	if e == nil {
		return 0
	}
	return e.SessionCount()
}

// Cancel carries out what another node has forwarded. Without an engine nobody has been given a key yet.
func (l *lateEngine) Cancel(request []byte) (known bool) {
	e := l.engine()
	return e != nil && e.CarryOutCancel(request)
}

// Impact implements cluster.Engine.
func (l *lateEngine) Impact(ctx context.Context, scopes []revoke.Scope) []revoke.SessionImpact {
	e := l.engine()
	if e == nil {
		return nil
	}
	return e.Impact(ctx, scopes)
}

// Freeze, Thaw and Drop implement cluster.Engine. Without an engine there is no session yet.
func (l *lateEngine) Freeze() { l.onEngine(dataPlane.Freeze) }
func (l *lateEngine) Thaw()   { l.onEngine(dataPlane.Thaw) }
func (l *lateEngine) Drop()   { l.onEngine(dataPlane.Drop) }

func (l *lateEngine) onEngine(do func(dataPlane)) {
	if e := l.engine(); e != nil {
		do(e)
	}
}

// Upstreams implements cluster.Engine. Without an engine there is no control connection yet.
func (l *lateEngine) Upstreams() map[string]revoke.UpstreamPresence {
	if e := l.engine(); e != nil {
		return e.Upstreams()
	}
	return nil
}

// Claims implements cluster.Engine.
func (l *lateEngine) Claims(roles []string) []revoke.Claim {
	if e := l.engine(); e != nil {
		return e.Claims(roles)
	}
	return nil
}

var errNoEngine = errors.New("the node is still starting")

// Sweep implements cluster.Engine.
func (l *lateEngine) Sweep(ctx context.Context, server string, pass revoke.SweepPass) ([]revoke.SweepOutcome, error) {
	e := l.engine()
	if e == nil {
		return nil, errNoEngine
	}
	return e.Sweep(ctx, server, pass)
}

// RestoreLogins implements cluster.Engine.
func (l *lateEngine) RestoreLogins(ctx context.Context, server string, may func(string, revoke.LoginMark) bool) ([]string, error) {
	e := l.engine()
	if e == nil {
		return nil, errNoEngine
	}
	return e.RestoreLogins(ctx, server, may)
}

// auditRecord turns the engine's event into a record of the trail.
func auditRecord(e engine.AuditEvent) audit.Record {
	r := audit.Record{
		Time: e.Time, Kind: e.Kind, Session: e.Session, Principal: e.Principal, Role: e.Role, Database: e.Database,
		Client: e.Client, Application: e.Application, Reason: e.Reason, SQLState: e.SQLState, Revocation: e.Revocation,
		Detail: e.Detail, DurationMS: float64(e.Duration.Microseconds()) / 1000, BytesIn: e.BytesIn, BytesOut: e.BytesOut,
	}
	if r.Kind == audit.KindRevocation {
		// The engine has one field for why a session ended and for what a fact does; the trail has two.
		r.Verb, r.Reason = r.Reason, ""
	}
	r.Detail = strings.TrimSpace(r.Detail)
	return r
}
