package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgedge/cluster"
	"pgedge/revoke"
)

const watchInterval = time.Second

// sessionsWatch lists the sessions again and again. Losing the cluster for a while is something to watch, too: it
// ends nothing.
type sessionsWatch struct {
	app    *app
	filter cluster.SessionFilter
	round  int
	// last is what the newest answer of every node held, by id: a node that does not answer has ended nothing.
	last map[string]revoke.SessionInfo
}

func (a *app) watchSessions(ctx context.Context, client *cluster.Client, filter cluster.SessionFilter) error {
	w := &sessionsWatch{app: a, filter: filter, last: make(map[string]revoke.SessionInfo)}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		if err := w.next(ctx, client); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// next runs one round. Its error is one of printing.
func (w *sessionsWatch) next(ctx context.Context, client *cluster.Client) error {
	asked, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	sessions, missing, err := client.Sessions(asked, w.filter)
	if ctx.Err() != nil {
		return nil
	}
	w.round++
	sortSessions(sessions)
	switch {
	case w.app.json():
		return w.printJSON(sessions, missing, err)
	case isTerminal(w.app.io.out):
		return w.draw(sessions, missing, err)
	case err != nil:
		fmt.Fprintf(w.app.io.err, "pgedge: %v\n", err)
		return nil
	}
	return w.app.printSessions(sessions, missing)
}

// roundSessionJSON is a session of a round, roundJSON the line that ends the round.
type roundSessionJSON struct {
	Round int  `json:"round"`
	New   bool `json:"new,omitempty"`
	revoke.SessionInfo
}

type roundJSON struct {
	Round    int       `json:"round"`
	At       time.Time `json:"at"`
	Sessions int       `json:"sessions"`
	Ended    []string  `json:"ended"`   // ids that were listed before and are no more
	Missing  []string  `json:"missing"` // nodes without a complete answer
	Error    string    `json:"error,omitempty"`
}

func (w *sessionsWatch) printJSON(sessions []revoke.SessionInfo, missing []string, asked error) error {
	end := roundJSON{Round: w.round, At: time.Now().UTC(), Sessions: len(sessions), Ended: []string{}, Missing: append([]string{}, missing...)}
	if asked != nil {
		end.Error = asked.Error()
		return w.app.printJSON(end)
	}
	now := make(map[string]revoke.SessionInfo, len(sessions))
	for _, s := range sessions {
		now[s.ID] = s
		_, known := w.last[s.ID]
		if err := w.app.printJSON(roundSessionJSON{w.round, !known, s}); err != nil {
			return err
		}
	}
	for id, s := range w.last {
		if _, lives := now[id]; lives {
			continue
		}
		if slices.Contains(missing, s.Node) {
			now[id] = s
			continue
		}
		end.Ended = append(end.Ended, id)
	}
	slices.Sort(end.Ended)
	w.last = now
	return w.app.printJSON(end)
}

// draw replaces what is on the screen, without clearing it first: that would flicker.
func (w *sessionsWatch) draw(sessions []revoke.SessionInfo, missing []string, asked error) error {
	var page bytes.Buffer
	if asked == nil {
		if err := writeSessions(&page, sessions); err != nil {
			return err
		}
	}
	lines := strings.Split(strings.TrimRight(page.String(), "\n"), "\n")
	head := time.Now().Format("15:04:05") + "  " + lines[len(lines)-1]
	if len(missing) > 0 {
		head += "; no complete answer from " + strings.Join(missing, ", ")
	}
	if asked != nil {
		head = time.Now().Format("15:04:05") + "  " + printable(asked.Error())
	}
	lines = append([]string{head, ""}, lines[:len(lines)-1]...)
	width, height := terminalSize(w.app.io.out)
	if hidden := len(lines) - (height - 1); hidden > 0 && height > 4 {
		lines = append(lines[:height-2], fmt.Sprintf("... and %d more", hidden+1))
	}
	var frame strings.Builder
	frame.WriteString("\x1b[H")
	for _, l := range lines {
		if r := []rune(l); len(r) > width {
			l = string(r[:width])
		}
		frame.WriteString(l + "\x1b[K\n")
	}
	frame.WriteString("\x1b[J")
	_, err := fmt.Fprint(w.app.io.out, frame.String())
	return err
}
