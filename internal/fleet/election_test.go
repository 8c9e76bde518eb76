package fleet

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// TestARevocationDuringAnElectionCutsAtOnceAndLasts kills the server that leads the journal and revokes in the same
// moment: the fast path needs no leader, the journal has the fact once there is a new one.
func TestARevocationDuringAnElectionCutsAtOnceAndLasts(t *testing.T) {
	f := start(t, Options{Nodes: 3})
	names := people(t, f, 1+2**times)
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	add := func(name string) {
		for _, n := range f.Nodes {
			if _, err := ws.Add(within(t, time.Minute), n.Addr, name, 20*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
	}
	bystander := names[0]
	add(bystander)
	for i, name := range names[1:] {
		add(name)
		bare := i%2 == 1
		held := t.Run(fmt.Sprintf("%d/bare=%v", i/2+1, bare), func(t *testing.T) {
			electionRound(t, f, ws, name, bare)
		})
		if !held {
			return // a server is missing now
		}
		for _, w := range ws.Of(bystander) {
			select {
			case <-w.Done():
				t.Fatalf("the bystander's session ended: %v", w.Err())
			default:
			}
		}
	}
	for _, n := range f.Nodes {
		if strings.Contains(n.Log(), "frozen") {
			t.Errorf("%s froze its sessions because of an election", n.Name)
		}
	}
}

func electionRound(t *testing.T, f *Fleet, ws *Writers, name string, bare bool) {
	nc, err := f.NATS.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	leader, err := f.NATS.Leader(within(t, 10*time.Second), "PGEDGE")
	if err != nil {
		t.Fatal(err)
	}
	f.NATS.Servers[leader].Kill()
	began := time.Now()
	done := make(chan Result, 1)
	if bare {
		// The killed server may have been the publisher's, or every node's: a bare message reaches who is connected.
		awaitAnswers(t, nc, len(f.Nodes))
		began = time.Now()
		if err := nc.Publish("pgedge.revoke.principal."+name, nil); err != nil {
			t.Fatal(err)
		}
		if err := nc.FlushTimeout(5 * time.Second); err != nil {
			t.Fatal(err)
		}
	} else {
		go func() { done <- f.CLI(context.Background(), "revoke", name, "-o", "json") }()
	}
	for _, w := range ws.Of(name) {
		await(t, "a session of "+name+" to be cut", w.Done(), 15*time.Second)
		if code := w.SQLState(); code != "28000" {
			t.Errorf("a session of %s ended with %q (%v), want 28000", name, code, w.Err())
		}
	}
	t.Logf("cut on every node after %s", time.Since(began).Round(time.Millisecond))
	for _, n := range f.Nodes {
		if _, err := Connect(within(t, time.Minute), n.Addr, name); SQLState(err) != "28000" {
			t.Errorf("a login at %s during the election: %v, want 28000", n.Name, err)
		}
	}
	if !bare {
		r := <-done
		if v, err := r.Verdict(); err != nil || r.Code != 0 || v.Verdict != "complete" || v.Matched != 3 {
			t.Errorf("want the verdict complete for 3 sessions, got %v\n%s", err, r)
		}
	}
	if err := f.NATS.Start(within(t, time.Minute), leader); err != nil {
		t.Fatal(err)
	}
	if err := f.NATS.AwaitStreams(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	awaitStored(t, f, name)
}

// awaitAnswers returns when so many nodes hear what this connection publishes.
func awaitAnswers(t *testing.T, nc *nats.Conn, nodes int) {
	t.Helper()
	err := poll(within(t, 30*time.Second), "the nodes to be connected", func() (bool, error) {
		answers, err := nc.SubscribeSync(nc.NewRespInbox())
		if err != nil {
			return false, nil // the publisher itself is not connected yet
		}
		defer answers.Unsubscribe()
		if nc.PublishRequest("pgedge.query.nodes", answers.Subject, nil) != nil {
			return false, nil
		}
		for range nodes {
			if _, err := answers.NextMsg(100 * time.Millisecond); err != nil {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitStored returns when the journal holds the revocation.
func awaitStored(t *testing.T, f *Fleet, name string) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	err := poll(ctx, "the journal to hold the revocation of "+name, func() (bool, error) {
		r := f.CLI(ctx, "revocations", "-o", "json")
		return r.Code == 0 && strings.Contains(r.Stdout, `"principal.`+name+`"`), nil
	})
	if err != nil {
		t.Error(err)
	}
}
