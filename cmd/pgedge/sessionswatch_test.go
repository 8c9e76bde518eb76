package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgedge/revoke"
)

func TestAFrameOfAWatchFitsTheScreenAndNamesWhoDidNotAnswer(t *testing.T) {
	var out bytes.Buffer
	w := &sessionsWatch{app: &app{io: stdio{out: &out}}}
	var sessions []revoke.SessionInfo
	for i := range 100 {
		sessions = append(sessions, revoke.SessionInfo{ID: fmt.Sprintf("edge-a-%d", i), Principal: strings.Repeat("ü", 90), Application: "\x1b[31m"})
	}
	if err := w.draw(sessions, []string{"edge-b"}, nil); err != nil {
		t.Fatal(err)
	}
	frame := out.String()
	lines := strings.Split(strings.TrimSuffix(frame, "\x1b[J"), "\n")
	if len(lines) > 24 || !strings.Contains(frame, "... and 81 more") {
		t.Errorf("%d lines:\n%s", len(lines), frame)
	}
	for _, l := range lines {
		if n := len([]rune(strings.TrimSuffix(strings.TrimPrefix(l, "\x1b[H"), "\x1b[K"))); n > 80 {
			t.Errorf("%d columns: %q", n, l)
		}
	}
	if !strings.Contains(lines[0], "100 sessions; no complete answer from edge-b") || strings.Contains(frame, "\x1b[31m") {
		t.Errorf("%q", frame)
	}
	out.Reset()
	if err := w.draw(nil, nil, errors.New("NATS is gone")); err != nil || !strings.Contains(out.String(), "NATS is gone") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
