package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgedge/internal/pgserver"
	"pgedge/internal/pgtest"
)

// doctored runs the doctor and returns its findings, "level check" to their texts.
func doctored(t *testing.T, want int, args ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	lines := decodeLines(t, pgedge(t, want, append([]string{"doctor", "-o", "json"}, args...)...))
	for _, l := range lines[:len(lines)-1] {
		do, _ := l["do"].(string)
		found[l["level"].(string)+" "+l["check"].(string)] += l["text"].(string) + " -> " + do + "\n"
	}
	if last := lines[len(lines)-1]; last["ok"] != (want == 0) {
		t.Errorf("the last line is %v", last)
	}
	return found
}

func wantFinding(t *testing.T, found map[string]string, key string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(found[key], text) {
			t.Errorf("%s does not say %q: %q, of %v", key, text, found[key], found)
		}
	}
}

func TestDoctorBeforeTheFirstStartAndBesideARunningNode(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	state := filepath.Join(t.TempDir(), "state")
	upstream := pg.URL("pgedge_control", pgserver.Password("pgedge_control"), pgserver.Database)
	args := []string{"--upstream", upstream, "--state-dir", state, "--node", "edge-a"}

	found := doctored(t, 0, args...)
	wantFinding(t, found, "ok state_dir", "does not exist yet")
	wantFinding(t, found, "skip nats", "starts with the node")
	wantFinding(t, found, "ok control role", "has found a session of its own by its port, and ended it")
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Error("the doctor made the state directory")
	}

	node := startServe(t, append(args, "--listen", "127.0.0.1:0", "--admin", "off")...)
	addr := node.await(logAccepting)["address"].(string)
	node.await(logReady)
	alice, err := login(addr, "alice")
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close(context.Background())
	found = doctored(t, 0, args...)
	for key, text := range map[string]string{
		"ok state_dir": "is in use by process", "ok nats": "version 2.", "ok journal": "1 copy", "ok nats rights": "allowed",
		"ok nodes": "1 node is live", "ok bypass": "no session reaches it past pgedge", "ok upstream": "PostgreSQL", "ok descriptors": "process ",
	} {
		wantFinding(t, found, key, text)
	}

	// A session past pgedge is told from alice's.
	bob := pgtest.LoginRaw(t, pg.Addr(), "bob", pgserver.Database)
	defer bob.Close()
	wantFinding(t, doctored(t, 0, args...), "warn bypass", "1 session past pgedge: bob from 127.0.0.1", "does not reach them")
	natsPublish(t, state, "pgedge.node.edge-z.boot1", `{"v":1,"node":"edge-z","boot":"boot1","n":1,"state":"serving","lease_ms":1,"on_stale":"serve"}`)
	pgtest.Wait(t, "the lost node to be found", func() bool {
		return strings.Contains(doctored(t, 0, args...)["warn nodes"], "pgedge nodes forget edge-z")
	})
	if err := alice.Ping(context.Background()); err != nil {
		t.Errorf("a bystander: %v", err)
	}
}

func TestDoctorFailsForWhatIsBrokenAndSaysWhatToDo(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{})
	dir := t.TempDir()
	expired := filepath.Join(dir, "expired.pem")
	writeFile(t, expired, selfSigned(t, time.Now().Add(-time.Hour)))
	soon := filepath.Join(dir, "soon.pem")
	writeFile(t, soon, selfSigned(t, time.Now().Add(24*time.Hour)))
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	with := func(user, password, options string) string {
		return pg.URL(user, password, pgserver.Database) + options
	}
	for _, tt := range []struct {
		args []string
		code int
		key  string
		text []string
	}{
		{[]string{"--upstream", with("pgedge_weak", "weak-secret", "")}, 1, "fail control role", []string{"is not a member of pg_read_all_stats", "GRANT pg_read_all_stats TO pgedge_weak"}},
		{[]string{"--upstream", with("pgedge_control", "wrong", "")}, 1, "fail control role", []string{"password authentication failed", "check control.user"}},
		{[]string{"--upstream", with("postgres", pgserver.Password("postgres"), "")}, 0, "warn control role", []string{"is a superuser"}},
		{[]string{"--upstream", "postgres://" + pg.Addr()}, 0, "warn control role", []string{"has none"}},
		{[]string{"--upstream", "postgres://127.0.0.1:1"}, 1, "fail upstream", []string{"cannot be reached"}},
		{[]string{"--upstream", with("pgedge_control", "control-secret", "?sslmode=prefer&sslrootcert="+expired)}, 1, "fail certificates", []string{"expired 1h00m ago", "renew it"}},
		{[]string{"--upstream", with("pgedge_control", "control-secret", "?sslmode=prefer&sslrootcert="+soon)}, 0, "warn certificates", []string{"expires in 2", "renew it"}},
		{[]string{"--state-dir", open}, 1, "fail state_dir", []string{"writable by other users", "chmod 700"}},
		{[]string{"--nats", "nats://127.0.0.1:1"}, 1, "fail nats", []string{"cannot connect to NATS at 127.0.0.1:1"}},
		{nil, 0, "skip upstream", []string{"neither -c nor --upstream"}},
	} {
		args := tt.args
		if !strings.Contains(strings.Join(args, " "), "--state-dir") {
			args = append(args, "--state-dir", filepath.Join(dir, "state"))
		}
		found := doctored(t, tt.code, args...)
		wantFinding(t, found, tt.key, tt.text...)
		for _, text := range found {
			if strings.Contains(text, "control-secret") || strings.Contains(text, "weak-secret") {
				t.Errorf("a password is printed: %s", text)
			}
		}
	}
	sweeps := filepath.Join(dir, "sweeps.yaml")
	writeFile(t, sweeps, "databases: {'*': {sweep: true, upstream: '"+with("pgedge_control", "control-secret", "")+"'}}\n")
	wantFinding(t, doctored(t, 1, "-c", sweeps, "--state-dir", filepath.Join(dir, "state")), "fail control role", "may not set roles NOLOGIN", "CREATEROLE")
	broken := filepath.Join(dir, "broken.yaml")
	writeFile(t, broken, "nood: a\n")
	wantFinding(t, doctored(t, 1, "-c", broken, "--state-dir", filepath.Join(dir, "state")), "fail configuration", "unknown key")
}

func selfSigned(t *testing.T, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "old authority"}, NotBefore: until.Add(-48 * time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestAClockThatIsOffIsAWarning(t *testing.T) {
	for _, tt := range []struct {
		ahead, uncertain time.Duration
		level            string
	}{
		{time.Second, 0, levelOK}, {3 * time.Second, 2 * time.Second, levelOK}, {3 * time.Second, time.Millisecond, levelWarn}, {-time.Hour, time.Second, levelWarn},
	} {
		var out strings.Builder
		d := &doctor{app: &app{io: stdio{out: &out}}}
		d.clockOf("x", tt.ahead, tt.uncertain)
		if !strings.HasPrefix(out.String(), tt.level) {
			t.Errorf("%s ahead, known to %s: %s", tt.ahead, tt.uncertain, out.String())
		}
	}
	var out strings.Builder
	d := &doctor{app: &app{io: stdio{out: &out}}, clocks: readClocks()}
	d.clocks.wall = d.clocks.wall.Add(-time.Hour)
	d.clockDrift()
	if !strings.HasPrefix(out.String(), levelWarn) || !strings.Contains(out.String(), "stepped by 1h0m0s") {
		t.Error(out.String())
	}
}
