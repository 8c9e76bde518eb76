package engine

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// Lines about single sessions are limited: a flood of refused logins, or ten thousand sessions of one principal, must
// not fill the disk nor hold up a loop. The audit trail has every one of them.
const (
	sessionLinesPerSecond = 50
	sessionLinesBurst     = 200
)

// sessionLog writes lines about sessions within the limit, and how many it left out.
type sessionLog struct {
	log     *slog.Logger
	limit   *limiter
	skipped atomic.Int64
}

func newSessionLog(log *slog.Logger) *sessionLog {
	return &sessionLog{log: log, limit: newLimiter(sessionLinesPerSecond, sessionLinesBurst)}
}

func (l *sessionLog) write(level slog.Level, msg string, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	if !l.limit.allow() {
		l.skipped.Add(1)
		return
	}
	if n := l.skipped.Swap(0); n > 0 {
		args = append(args, "lines_left_out_before", n)
	}
	l.log.Log(context.Background(), level, msg, args...)
}
