package fleet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgedge/internal/pgserver"
)

// shortLease makes a partition a matter of seconds. A heartbeat every 300 ms leaves room for a slow machine.
func shortLease(freeze time.Duration) Options {
	return Options{Nodes: 3, Namespaces: 1, Heartbeat: 300 * time.Millisecond, Lease: 4 * time.Second, Freeze: freeze, FreezeInTransaction: 2 * time.Second}
}

// TestANodeCutOffFromNATSIsFencedAndItsBystandersGoOn cuts one node off from NATS but not from its clients, revokes
// somebody, and lets the node come back in time.
func TestANodeCutOffFromNATSIsFencedAndItsBystandersGoOn(t *testing.T) {
	needNamespaces(t)
	o := shortLease(60 * time.Second)
	o.FreezeInTransaction = o.Freeze // a result on its way counts as a transaction
	f := start(t, o)
	names := people(t, f, 2)
	revoked, bystander := names[0], names[1]
	cutOff := f.Nodes[0]
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	add := func(n *Node, name string) *Writer {
		w, err := ws.Add(within(t, time.Minute), n.Addr, name, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, n := range f.Nodes {
		add(n, revoked)
	}
	there := add(cutOff, bystander)
	elsewhere := add(f.Nodes[1], bystander)
	unread := startUnread(t, cutOff, bystander)

	if err := cutOff.CutNATS(); err != nil {
		t.Fatal(err)
	}
	v, r := verdict(t, f, "revoke", revoked)
	atReturn := rows(t, f.Postgres, revoked)
	if r.Code != 3 || v.Verdict != "complete_fenced" || v.Status(cutOff.Name) != "fenced" {
		t.Fatalf("want complete_fenced and exit code 3\n%s", r)
	}
	for _, n := range v.Nodes {
		if n.Node == cutOff.Name && n.AfterMS < 4040 {
			t.Errorf("fenced %v ms after the fact was seen stored: a lease of 4 s and one percent had not passed", n.AfterMS)
		}
	}
	// Everybody at the cut-off node is frozen: nothing moves, nobody sees an error.
	frozenAt := there.Acked.Load()
	before := elsewhere.Acked.Load()
	awaitProgress(t, elsewhere, before+50)
	if moved := there.Acked.Load() - frozenAt; moved != 0 {
		t.Errorf("%d statements went through the cut-off node after it was fenced", moved)
	}
	// What the node had handed to the kernel before arrives; then there is silence on the wire.
	unread.readUntilQuiet(t, time.Second)
	if n := unread.read(t, 2*time.Second); n > 0 {
		t.Errorf("%d bytes of a result came from the cut-off node after it was fenced", n)
	}
	if code, why, err := cutOff.Readyz(within(t, 10*time.Second)); err != nil || code != 503 {
		t.Errorf("/readyz of the cut-off node: %d %q %v, want 503", code, why, err)
	}
	if _, err := Connect(within(t, time.Minute), cutOff.Addr, bystander); SQLState(err) != "57P03" {
		t.Errorf("a login at the cut-off node: %v, want 57P03", err)
	}

	if err := cutOff.HealNATS(); err != nil {
		t.Fatal(err)
	}
	awaitProgress(t, there, frozenAt+20)
	if got := unread.rows(t); got != unreadRows {
		t.Errorf("the result that was frozen on its way has %d rows, want %d", got, unreadRows)
	}
	for _, w := range ws.Of(revoked) {
		await(t, "a session of "+revoked+" to end", w.Done(), 30*time.Second)
	}
	if now := rows(t, f.Postgres, revoked); now != atReturn {
		t.Errorf("%d rows of %s were committed after the command had returned", now-atReturn, revoked)
	}
	ws.Stop()
	for _, w := range ws.Of(bystander) {
		if err := w.Err(); err != nil {
			t.Errorf("a bystander saw an error: %v", err)
		}
	}
}

// TestANodeThatStaysCutOffEndsItsSessionsAndTheirBackends is the same without an end to the partition.
func TestANodeThatStaysCutOffEndsItsSessionsAndTheirBackends(t *testing.T) {
	needNamespaces(t)
	f := start(t, shortLease(3*time.Second))
	name := people(t, f, 1)[0]
	cutOff := f.Nodes[0]
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	w, err := ws.Add(within(t, time.Minute), cutOff.Addr, name, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if err := cutOff.CutNATS(); err != nil {
		t.Fatal(err)
	}
	await(t, "the session to end", w.Done(), 30*time.Second)
	if code := w.SQLState(); code != "57P03" {
		t.Errorf("the session ended with %q (%v), want 57P03", code, w.Err())
	}
	awaitBackends(t, f, name, 0)
	if err := cutOff.HealNATS(); err != nil {
		t.Fatal(err)
	}
	if err := cutOff.AwaitReadyz(within(t, 30*time.Second), 200); err != nil {
		t.Fatal(err)
	}
	if _, err := ws.Add(within(t, time.Minute), cutOff.Addr, name, 10*time.Millisecond); err != nil {
		t.Errorf("a login after the partition: %v", err)
	}
}

// TestAStatementBehindACutOffNodeIsStoppedInTheDatabase shows that a partition gives a revoked person no time: another
// node stops the statement where both reach it, and what the client starts next.
func TestAStatementBehindACutOffNodeIsStoppedInTheDatabase(t *testing.T) {
	needNamespaces(t)
	o := shortLease(60 * time.Second)
	o.Lease = 8 * time.Second
	f := start(t, o)
	name := people(t, f, 1)[0]
	cutOff := f.Nodes[0]
	conn, err := Connect(within(t, time.Minute), cutOff.Addr, name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = conn.Exec(context.Background(), "INSERT INTO writes (principal, writer, n) SELECT '"+name+"', 0, 1 FROM pg_sleep(60)").ReadAll()
	}()
	awaitBackends(t, f, name, 1)
	awaitAnnounced(t, f, cutOff)
	if err := cutOff.CutNATS(); err != nil {
		t.Fatal(err)
	}
	done := make(chan Result, 1)
	go func() { done <- f.CLI(context.Background(), "revoke", name, "-o", "json") }()
	// The node behind the partition has not heard of it, and its lease runs on: its client may start again.
	await(t, "the statement to be stopped", ended, 6*time.Second)
	again, err := Connect(within(t, time.Minute), cutOff.Addr, name)
	if err == nil {
		_, err = again.Exec(within(t, time.Minute), "INSERT INTO writes (principal, writer, n) SELECT '"+name+"', 0, 2 FROM pg_sleep(60)").ReadAll()
	}
	if err == nil {
		t.Error("what the client started next was not stopped")
	}
	r := <-done
	if v, err := r.Verdict(); err != nil || r.Code != 3 || v.Verdict != "complete_fenced" {
		t.Errorf("want complete_fenced and exit code 3\n%s", r)
	}
	awaitBackends(t, f, name, 0)
	if n := rows(t, f.Postgres, name); n != 0 {
		t.Errorf("%d rows were committed", n)
	}
}

// TestAStoppedNodePassesNothingWhenItGoesOn stops a process past its lease, as a hypervisor or a debugger would.
func TestAStoppedNodePassesNothingWhenItGoesOn(t *testing.T) {
	o := shortLease(60 * time.Second)
	o.Namespaces = 0
	f := start(t, o)
	names := people(t, f, 2)
	revoked, bystander := names[0], names[1]
	stopped := f.Nodes[0]
	ws := NewWriters()
	t.Cleanup(ws.Stop)
	var sessions []*Writer
	for _, name := range []string{revoked, revoked, revoked, bystander} {
		w, err := ws.Add(within(t, time.Minute), stopped.Addr, name, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, w)
		awaitProgress(t, w, 3)
	}
	stopped.Pause()
	v, r := verdict(t, f, "revoke", revoked)
	atReturn := rows(t, f.Postgres, revoked)
	if r.Code != 3 || v.Verdict != "complete_fenced" || v.Status(stopped.Name) != "fenced" {
		t.Fatalf("want complete_fenced and exit code 3\n%s", r)
	}
	bystanders := sessions[3].Acked.Load()
	stopped.Continue()
	for _, w := range sessions[:3] {
		await(t, "a session of "+revoked+" to end", w.Done(), 30*time.Second)
	}
	// One buffer per event loop may have stood between the check and the write; there are as many loops as processors.
	if late := rows(t, f.Postgres, revoked) - atReturn; late > 2 {
		t.Errorf("%d rows of %s were committed after the command had returned, at most one a loop is explained", late, revoked)
	}
	awaitProgress(t, sessions[3], bystanders+20)
}

func awaitProgress(t *testing.T, w *Writer, acked int64) {
	t.Helper()
	err := poll(within(t, 30*time.Second), "a session of "+w.Principal+" to go on", func() (bool, error) {
		select {
		case <-w.Done():
			return false, w.err
		default:
		}
		return w.Acked.Load() >= acked, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func awaitBackends(t *testing.T, f *Fleet, name string, want int64) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	conn, err := f.Postgres.Connect(ctx, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	err = poll(ctx, "the backends of "+name, func() (bool, error) {
		var n int64
		err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", name).Scan(&n)
		return n == want, err
	})
	if err != nil {
		t.Error(err)
	}
}

// awaitAnnounced returns when the fleet has been told from which addresses a node reaches the database.
func awaitAnnounced(t *testing.T, f *Fleet, n *Node) {
	t.Helper()
	nc, err := f.NATS.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	heartbeats, err := nc.SubscribeSync("pgedge.node." + n.Name + ".*")
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := heartbeats.NextMsgWithContext(within(t, 30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(m.Data), `"addresses"`) {
			return
		}
	}
}

// unreadRows of a hundred bytes are more than all buffers between Postgres and a client take.
const unreadRows = 400_000

// unread is a client that has asked for a long result and reads it when the test says so.
type unread struct {
	conn net.Conn
	got  []byte
}

func startUnread(t *testing.T, n *Node, name string) *unread {
	t.Helper()
	conn, err := Connect(within(t, time.Minute), n.Addr, name)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := pgserver.TakeOver(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Conn.Close() })
	q := pgproto3.Query{String: fmt.Sprintf("COPY (SELECT repeat('x', 99) FROM generate_series(1, %d)) TO STDOUT", unreadRows)}
	msg, err := q.Encode(nil)
	if err == nil {
		_, err = raw.Conn.Write(msg)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &unread{conn: raw.Conn}
}

// read reads what comes within d and returns how much that was.
func (u *unread) read(t *testing.T, d time.Duration) int {
	t.Helper()
	if err := u.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	n, err := u.conn.Read(p)
	u.got = append(u.got, p[:n]...)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the client that did not read saw an error: %v", err)
	}
	return n
}

func (u *unread) readUntilQuiet(t *testing.T, d time.Duration) {
	t.Helper()
	for u.read(t, d) > 0 {
	}
}

// rows reads the result to its end and counts its rows.
func (u *unread) rows(t *testing.T) int {
	t.Helper()
	ready := []byte{'Z', 0, 0, 0, 5, 'I'}
	for !bytes.HasSuffix(u.got, ready) {
		if u.read(t, 30*time.Second) == 0 {
			t.Fatalf("nothing more came after %d bytes", len(u.got))
		}
	}
	rows := 0
	for p := u.got; len(p) >= 5; {
		if p[0] == 'd' {
			rows++
		}
		p = p[1+binary.BigEndian.Uint32(p[1:]):]
	}
	return rows
}
