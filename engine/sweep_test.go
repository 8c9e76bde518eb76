package engine

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgedge/internal/pgtest"
	"pgedge/revoke"
)

// theServer is the key under which the node announces its only server.
func (n *node) theServer() string {
	n.t.Helper()
	ups := n.Upstreams()
	if len(ups) != 1 {
		n.t.Fatalf("upstreams: %+v", ups)
	}
	for key := range ups {
		return key
	}
	return ""
}

// pass makes one pass with one task.
func (n *node) pass(t revoke.SweepTask, claims ...revoke.Claim) revoke.SweepOutcome {
	n.t.Helper()
	out, err := n.Sweep(bounded(n.t), n.theServer(), revoke.SweepPass{Tasks: []revoke.SweepTask{t}, Claims: claims})
	if err != nil || len(out) != 1 {
		n.t.Fatalf("pass: %v, %v", out, err)
	}
	return out[0]
}

// past is a session of a role that does not go through pgedge.
func past(t testing.TB, role string) *pgx.Conn {
	t.Helper()
	c, err := tryPast(role, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func tryPast(role, options string) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return pgx.Connect(ctx, fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable%s", role, pgtest.Password(role), server.Addr(), pgtest.Database, options))
}

func wantCounts(t testing.TB, r revoke.Residue, prepared, slots, direct int, login bool) {
	t.Helper()
	show := func(p *int) any {
		if p == nil {
			return "unknown"
		}
		return *p
	}
	if r.PreparedXacts == nil || r.ReplicationSlots == nil || r.DirectSessions == nil || r.RoleCanLogin == nil ||
		*r.PreparedXacts != prepared || *r.ReplicationSlots != slots || *r.DirectSessions != direct || *r.RoleCanLogin != login {
		t.Errorf("residue: %v prepared, %v slots, %v direct, want %d, %d, %d; %+v", show(r.PreparedXacts), show(r.ReplicationSlots), show(r.DirectSessions), prepared, slots, direct, r)
	}
}

// controlWithRights is a control role of this test's own that may also alter roles.
func controlWithRights(t testing.TB, attributes string) func(*Config) {
	role := newRole(t, attributes)
	server.Exec(t, "GRANT pg_signal_backend, pg_read_all_stats TO "+role)
	return func(cfg *Config) {
		cfg.Databases = map[string]Database{"*": {Upstream: controlUpstream(t, role, server.Addr(), "?sslmode=disable"), Sweep: true}}
	}
}

func TestResidueCountsWhatAKillLeaves(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_prepared_transactions": "5", "wal_level": "logical"}})
	// The slot comes first: it waits for all open transactions, prepared ones included.
	s.Exec(t, "ALTER ROLE alice REPLICATION", "SELECT pg_create_logical_replication_slot('left', 'test_decoding')")
	n := startNode(t, behind(controlUpstream(t, "pgedge_control", s.Addr(), "?sslmode=disable")))
	key := n.theServer()
	count := func() revoke.Residue {
		out, err := n.Sweep(bounded(t), key, revoke.SweepPass{Tasks: []revoke.SweepTask{{Role: "alice", Count: true}, {Role: "bob", Count: true}, {Role: "nobody", Count: true}}})
		if err != nil {
			t.Fatal(err)
		}
		wantCounts(t, out[1].Residue, 0, 0, 0, true)
		wantCounts(t, out[2].Residue, 0, 0, 0, false)
		return out[0].Residue
	}
	wantCounts(t, count(), 0, 0, 0, true)

	n.login("alice") // held by the node: no direct session
	wantCounts(t, count(), 0, 0, 0, true)

	url := s.URL("alice", pgtest.Password("alice"), pgtest.Database)
	ctx := bounded(t)
	direct, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, direct, "CREATE TABLE two_phase (v int)")
	mustExec(t, direct, "BEGIN")
	mustExec(t, direct, "INSERT INTO two_phase VALUES (1)")
	mustExec(t, direct, "PREPARE TRANSACTION 'left'")
	wantCounts(t, count(), 1, 0, 1, true)
	direct.Close(ctx)

	walsender, err := pgconn.Connect(ctx, url+"?sslmode=disable&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	streaming, stop := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_, _ = walsender.Exec(streaming, "START_REPLICATION SLOT \"left\" LOGICAL 0/0").ReadAll() // until the test ends
		walsender.Close(streaming)
	}()
	defer func() { stop(); <-stopped }()
	s.WaitInt(t, 1, "SELECT count(*) FROM pg_replication_slots WHERE active")
	wantCounts(t, count(), 1, 1, 1, true)

	s.Exec(t, "ALTER ROLE alice NOLOGIN")
	wantCounts(t, count(), 1, 1, 1, false)
}

func TestABackendThatALiveNodeClaimsIsNoDirectSession(t *testing.T) {
	t.Parallel()
	n, other := startNode(t, nil), startNode(t, nil)
	role := newRole(t, "")
	other.login(role)
	if r := n.pass(revoke.SweepTask{Role: role, Count: true}).Residue; *r.DirectSessions != 1 {
		t.Errorf("without the other node's claims: %+v", r)
	}
	claims := other.Claims([]string{role})
	if len(claims) != 1 || claims[0].PID == 0 || claims[0].Port == 0 || claims[0].Server != n.theServer() {
		t.Fatalf("claims: %+v", claims)
	}
	wantCounts(t, n.pass(revoke.SweepTask{Role: role, Count: true}, claims...).Residue, 0, 0, 0, true)

	// What cannot be told apart is not counted at all.
	out, err := n.Sweep(bounded(t), n.theServer(), revoke.SweepPass{Tasks: []revoke.SweepTask{{Role: role, Count: true}}, Doubtful: []string{"127.0.0.1"}})
	if err != nil || !out[0].Doubtful || out[0].Residue.DirectSessions != nil || out[0].Residue.PreparedXacts == nil {
		t.Errorf("while a node does not answer: %+v, %v", out, err)
	}
}

func TestBackendsOfASilentBootAreStoppedAndNobodyElses(t *testing.T) {
	t.Parallel()
	n, silent, live := startNode(t, nil), startNode(t, nil), startNode(t, nil)
	role, other := newRole(t, ""), newRole(t, "")
	stopped := start(silent.login(role), "SELECT pg_sleep(60)")
	own, claimed, bystander := n.login(role), live.login(role), silent.login(other)
	server.WaitInt(t, 1, asleepSQL, role)
	boot := revoke.SilentBoot{Node: "edge-s", Boot: "s1", Addresses: []string{"127.0.0.1"}}
	began := time.Now()

	// One that crashed before the backends began has left none of them, and one elsewhere neither.
	for _, b := range []revoke.SilentBoot{
		{Node: "edge-s", Boot: "s1", Addresses: boot.Addresses, Before: began.Add(-time.Hour)},
		{Node: "edge-s", Boot: "s1", Addresses: []string{"10.0.0.1"}},
	} {
		if r := n.pass(revoke.SweepTask{Role: role, Silent: []revoke.SilentBoot{b}}, live.Claims([]string{role})...).Residue; len(r.StoppedFor) != 0 {
			t.Errorf("stopped for %+v: %+v", b, r)
		}
	}
	// A kill spares what began after it.
	if r := n.pass(revoke.SweepTask{Role: role, Silent: []revoke.SilentBoot{boot}, Before: began.Add(-time.Hour)}, live.Claims([]string{role})...).Residue; len(r.StoppedFor) != 0 {
		t.Errorf("younger than the kill, but stopped: %+v", r)
	}
	r := n.pass(revoke.SweepTask{Role: role, Silent: []revoke.SilentBoot{boot}, Count: true}, live.Claims([]string{role})...).Residue
	if len(r.StoppedFor) != 1 || r.StoppedFor[0] != (revoke.StoppedFor{Node: "edge-s", Boot: "s1", Backends: 1}) {
		t.Errorf("stopped: %+v", r)
	}
	wantCounts(t, r, 0, 0, 0, true)
	wantCode(t, <-stopped, "57P01")
	for _, c := range []*pgx.Conn{own, claimed, bystander} {
		mustExec(t, c, "SELECT 1")
	}
}

// The superuser's backend must not keep the others', and what was left alone is said.
func TestASuperusersBackendIsLeftAloneAndTheReceiptSaysSo(t *testing.T) {
	t.Parallel()
	n, silent := startNode(t, nil), startNode(t, nil)
	super := newRole(t, "SUPERUSER")
	c := silent.login(super)
	r := n.pass(revoke.SweepTask{Role: super, Silent: []revoke.SilentBoot{{Node: "edge-s", Boot: "s1", Addresses: []string{"127.0.0.1"}}}}).Residue
	if len(r.StoppedFor) != 1 || r.StoppedFor[0].NotGone != 1 || r.StoppedFor[0].Backends != 0 || r.Why == "" {
		t.Errorf("residue: %+v", r)
	}
	mustExec(t, c, "SELECT 1")
}

func TestSweepEndsDirectSessionsAndReinstateRestoresExactly(t *testing.T) {
	t.Parallel()
	n := startNode(t, controlWithRights(t, "CREATEROLE"))
	if u := n.Upstreams()[n.theServer()]; !u.Sweep || len(u.Addresses) != 1 || u.Addresses[0] != "127.0.0.1" {
		t.Errorf("announced: %+v", u)
	}
	role, bystander := newRole(t, ""), newRole(t, "")
	const comment = `it's "payroll" \ [x]`
	server.Exec(t, "COMMENT ON ROLE "+role+" IS '"+`it''s "payroll" \ [x]`+"'")
	direct, other, own := past(t, role), past(t, bystander), n.login(role)
	task := revoke.SweepTask{Role: role, Count: true, Mark: &revoke.LoginMark{Verb: "revoke", Scope: "principal." + role, Revocation: "HR-1", Seq: 7}}

	r := n.pass(task).Residue
	wantCounts(t, r, 0, 0, 0, false)
	if r.Swept == nil || *r.Swept != (revoke.Swept{DirectSessions: 1, NoLogin: true}) || r.Why != "" {
		t.Errorf("swept: %+v", r)
	}
	_, err := direct.Exec(bounded(t), "SELECT 1")
	wantCode(t, err, "57P01")
	mustExec(t, other, "SELECT 1")
	mustExec(t, own, "SELECT 1") // the node's own cut ends it, not the sweep
	if _, err := tryPast(role, ""); err == nil {
		t.Error("a role that was set NOLOGIN logs in")
	}

	// Another pass, of a newer fact, keeps the memory and takes its place.
	task.Mark = &revoke.LoginMark{Verb: "suspend", Scope: "role." + role, Seq: 9, Until: time.Now().Add(time.Hour).UTC()}
	if r := n.pass(task).Residue; !r.Swept.NoLogin {
		t.Errorf("second pass: %+v", r)
	}
	restore := func(may bool) []string {
		t.Helper()
		roles, err := n.RestoreLogins(bounded(t), n.theServer(), func(r string, m revoke.LoginMark) bool {
			return may && r == role && m.Seq == 9 && m.Until.Equal(task.Mark.Until)
		})
		if err != nil {
			t.Fatal(err)
		}
		return roles
	}
	if got := restore(false); len(got) != 0 {
		t.Errorf("restored without leave: %v", got)
	}
	if got := restore(true); len(got) != 1 || got[0] != role {
		t.Errorf("restored: %v", got)
	}
	if got := server.QueryString(t, "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1", role); got != comment {
		t.Errorf("the comment is %q", got)
	}
	past(t, role)
	if got := restore(true); len(got) != 0 {
		t.Errorf("restored twice: %v", got)
	}
}

// A kill and a revoke of one principal are often followed at the same time. What the sweep of one ends is no residue of
// the other, which has swept nothing.
func TestTwoRevocationsOfOneRoleShareAPassWhenOnlyOneSweeps(t *testing.T) {
	t.Parallel()
	n := startNode(t, controlWithRights(t, "CREATEROLE"))
	role := newRole(t, "")
	direct := past(t, role)
	tasks := []revoke.SweepTask{
		{Role: role, Count: true, Before: time.Now().Add(time.Hour)}, // a kill
		{Role: role, Count: true, Mark: &revoke.LoginMark{Verb: "revoke", Scope: "principal." + role, Seq: 7}},
	}
	out, err := n.Sweep(bounded(t), n.theServer(), revoke.SweepPass{Tasks: tasks})
	if err != nil || len(out) != 2 {
		t.Fatalf("pass: %v, %v", out, err)
	}
	_, err = direct.Exec(bounded(t), "SELECT 1")
	wantCode(t, err, "57P01")
	for _, o := range out {
		wantCounts(t, o.Residue, 0, 0, 0, false)
	}
	if kill := out[0].Residue; kill.Swept != nil {
		t.Errorf("the kill claims to have swept: %+v", kill)
	}
	if swept := out[1].Residue.Swept; swept == nil || *swept != (revoke.Swept{DirectSessions: 1, NoLogin: true}) {
		t.Errorf("swept: %+v", swept)
	}
}

func TestARoleThatCouldNotLogInBeforeIsNotTouched(t *testing.T) {
	t.Parallel()
	n := startNode(t, controlWithRights(t, "CREATEROLE"))
	role := newRole(t, "")
	server.Exec(t, "ALTER ROLE "+role+" NOLOGIN")
	r := n.pass(revoke.SweepTask{Role: role, Mark: &revoke.LoginMark{Verb: "revoke", Scope: "principal." + role, Seq: 7}}).Residue
	if r.Swept == nil || r.Swept.NoLogin || r.Why != "" {
		t.Errorf("residue: %+v", r)
	}
	if got := server.QueryString(t, "SELECT coalesce(shobj_description(oid, 'pg_authid'), 'none') FROM pg_roles WHERE rolname = $1", role); got != "none" {
		t.Errorf("the comment is %q", got)
	}
}

func TestASweepWithoutTheRightEndsSessionsAndSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	n := startNode(t, controlWithRights(t, ""))
	role := newRole(t, "")
	past(t, role)
	r := n.pass(revoke.SweepTask{Role: role, Count: true, Mark: &revoke.LoginMark{Verb: "revoke", Scope: "principal." + role, Seq: 7}}).Residue
	if r.Swept == nil || r.Swept.NoLogin || r.Swept.DirectSessions != 1 || r.Why == "" {
		t.Errorf("residue: %+v", r)
	}
	wantCounts(t, r, 0, 0, 0, true)
}
