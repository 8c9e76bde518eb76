package fleet

import (
	"testing"
	"time"
)

// TestRevokingPeopleOneByOneUnderLoad is the mission: six nodes behind a balancer, three NATS servers, 300 sessions of
// 30 people that write all the time.
func TestRevokingPeopleOneByOneUnderLoad(t *testing.T) {
	needBalancer(t)
	f := start(t, Options{Nodes: 6, Balancer: true})
	names := people(t, f, 30)
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	for range 10 {
		for _, name := range names {
			if _, err := ws.Add(within(t, time.Minute), f.Front.Addr, name, 50*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
	}
	revoked := names[:10]
	after := make(map[string]int64)
	for _, name := range revoked {
		v, r := verdict(t, f, "revoke", name, "--reason", "HR-1")
		after[name] = rows(t, f.Postgres, name)
		if r.Code != 0 || v.Verdict != "complete" || v.Matched != 10 || len(v.Nodes) != 6 {
			t.Fatalf("the verdict on %s is not complete for 10 sessions on 6 nodes: %+v\n%s", name, v, r)
		}
		for _, w := range ws.Of(name) {
			await(t, "a session of "+name+" to end", w.Done(), 10*time.Second)
			if code := w.SQLState(); code != "28000" {
				t.Errorf("a session of %s ended with %q (%v), want 28000", name, code, w.Err())
			}
		}
		if _, err := Connect(within(t, time.Minute), f.Front.Addr, name); SQLState(err) != "28000" {
			t.Errorf("a login of %s after the revocation: %v, want 28000", name, err)
		}
	}
	for _, name := range revoked {
		if now := rows(t, f.Postgres, name); now != after[name] {
			t.Errorf("%d rows of %s were committed after the command had returned", now-after[name], name)
		}
		var acked int64
		for _, w := range ws.Of(name) {
			acked += w.Acked.Load()
		}
		if acked > after[name] {
			t.Errorf("%s was told of %d commits, and %d rows are there", name, acked, after[name])
		}
	}
	for _, name := range names[10:] {
		for _, w := range ws.Of(name) {
			select {
			case <-w.Done():
				t.Errorf("a bystander's session ended: %s: %v", name, w.Err())
			default:
			}
		}
	}
	ws.Stop()
	for _, name := range names[10:] {
		for _, w := range ws.Of(name) {
			if err := w.Err(); err != nil {
				t.Errorf("a bystander saw an error: %s: %v", name, err)
			}
		}
	}
}
