package engine

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"
)

// handler is what gnet calls, on the loops. gnet does not recover panics: each callback ends its own session only.
type handler struct {
	gnet.BuiltinEventEngine
	eng *Engine
}

func (h *handler) OnOpen(c gnet.Conn) ([]byte, gnet.Action) {
	sd, ok := c.Context().(*side)
	if !ok {
		return nil, gnet.None
	}
	sd.s.loop.enter()
	defer sd.s.loop.leave()
	defer h.eng.guard(sd.s)
	sd.s.loop.woken = sd.s.now()
	sd.opened(c)
	return nil, gnet.None
}

func (h *handler) OnTraffic(c gnet.Conn) gnet.Action {
	if sd, ok := c.Context().(*side); ok {
		sd.s.loop.enter()
		defer sd.s.loop.leave()
		defer h.eng.guard(sd.s)
		sd.s.loop.woken = sd.s.now()
		sd.readable()
		if c.InboundBuffered() == 0 {
			sd.s.loop.burst()
		}
	}
	return gnet.None
}

func (h *handler) OnClose(c gnet.Conn, err error) gnet.Action {
	switch ctx := c.Context().(type) {
	case *side:
		ctx.s.loop.enter()
		defer ctx.s.loop.leave()
		defer h.eng.guard(ctx.s)
		ctx.closed(err)
	case probe:
		unix.Close(int(ctx))
	}
	return gnet.None
}

// guard ends a session whose callback panicked, and nothing else.
func (e *Engine) guard(s *session) {
	p := recover()
	if p == nil {
		return
	}
	e.metrics.bugs.Inc()
	e.log.Error("bug: panic on a loop", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	if s == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			e.log.Error("bug: panic while ending a session", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			s.front.drop()
			s.back.drop()
		}
	}()
	if s.reason != reasonNone { // it was ending already, and that is what failed
		s.front.drop()
		s.back.drop()
		return
	}
	s.end(ReasonBug, fmt.Sprintf("panic: %v", p))
}

// testRelayHook lets a test make a callback panic; nil otherwise.
var testRelayHook func(*session)

// gnetLogger keeps gnet's own lines, which go to standard output otherwise, in the node's log.
type gnetLogger struct{ log *slog.Logger }

func (g gnetLogger) Debugf(format string, args ...any) {}
func (g gnetLogger) Infof(format string, args ...any) {
	g.log.Debug("gnet: " + fmt.Sprintf(format, args...))
}
func (g gnetLogger) Warnf(format string, args ...any) {
	g.log.Warn("gnet: " + fmt.Sprintf(format, args...))
}
func (g gnetLogger) Errorf(format string, args ...any) {
	g.log.Error("gnet: " + fmt.Sprintf(format, args...))
}
func (g gnetLogger) Fatalf(format string, args ...any) {
	g.log.Error("gnet: fatal: " + fmt.Sprintf(format, args...))
}

func secondsSince(t time.Time) float64 { return time.Since(t).Seconds() }
