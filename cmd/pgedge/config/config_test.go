package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// load writes the text to a file and loads it with these environment variables.
func load(t *testing.T, text string, environ ...string) (*Config, *Report) {
	t.Helper()
	return loadFrom(t, text, Sources{Environ: environ})
}

func loadFrom(t *testing.T, text string, src Sources) (*Config, *Report) {
	t.Helper()
	src.File = filepath.Join(t.TempDir(), "pgedge.yaml")
	if err := os.WriteFile(src.File, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if src.Lookup == nil {
		src.Lookup = func(name string) (string, bool) {
			for _, kv := range src.Environ {
				if v, ok := strings.CutPrefix(kv, name+"="); ok {
					return v, true
				}
			}
			return "", false
		}
	}
	return Load(src)
}

// lines renders problems as "LINE key: text", or "NAME key: text" outside a file.
func lines(ps []Problem) []string {
	var out []string
	for _, p := range ps {
		at := p.Place()
		if p.Line() > 0 {
			at = fmt.Sprint(p.Line())
		}
		out = append(out, strings.TrimSuffix(at+" "+p.Key, " ")+": "+p.Text)
	}
	return out
}

const oneDatabase = "databases: {'*': {upstream: 'postgres://control:${CONTROL}@db:5432/app'}}\n"

func TestFileValuesReachTheConfig(t *testing.T) {
	c, r := load(t, `
node: edge-a
listen: [127.0.0.1:6432, "unix:/run/pgedge"]
admin: off
state_dir: /tmp/state
tls: {mode: disable, cert_file: , key_file: , client_ca_file: }
limits: {max_sessions: 100, max_logins: 5, login_timeout: 2s, per_principal: 3, failed_logins_per_address_per_minute: 0}
timeouts: {idle_session: 1m, idle_in_transaction: 0, session_max: 12h, drain: 5s, drain_delay: 3s}
contact: it@corp.com
databases:
  app:
    upstream: postgres://u@db1:5432,db2:5432/app?sslmode=disable
    pool: {mode: session, max_backends: 7}
    sweep: true
auth: {method: passthrough, rules: []}
cluster: {nats: [nats://a:4222, "nats://b:4222"], replicas: 1, heartbeat: 200ms, lease: 4s, freeze: 9s, freeze_in_transaction: 2s, on_stale: serve, verify_timeout: 3s}
audit: {file: /tmp/audit.jsonl, queries: off, stream: false}
identity: {github: {}, scim: {}}
`)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Node: "edge-a", Listen: []string{"127.0.0.1:6432", "unix:/run/pgedge"}, StateDir: "/tmp/state", Contact: "it@corp.com",
		Limits:   Limits{MaxSessions: 100, MaxLogins: 5, LoginTimeout: 2 * time.Second, PerPrincipal: 3},
		Timeouts: Timeouts{IdleSession: time.Minute, SessionMax: 12 * time.Hour, Drain: 5 * time.Second, DrainDelay: 3 * time.Second},
		Databases: map[string]Database{"app": {
			Upstream: "postgres://u@db1:5432,db2:5432/app?sslmode=disable", MaxBackends: 7, Sweep: true,
		}},
		Cluster: Cluster{URLs: []Secret{"nats://a:4222", "nats://b:4222"}, Listen: "127.0.0.1:0", Replicas: 1, Heartbeat: 200 * time.Millisecond,
			Lease: 4 * time.Second, Freeze: 9 * time.Second, FreezeInTransaction: 2 * time.Second, OnStale: "serve", VerifyTimeout: 3 * time.Second},
		Audit: Audit{File: "/tmp/audit.jsonl"},
	}
	ignorePlaces := cmp.FilterPath(func(p cmp.Path) bool {
		return p.Last().String() == ".placed" || p.Last().String() == ".passwordFile"
	}, cmp.Ignore())
	if diff := cmp.Diff(want, c, ignorePlaces, cmp.AllowUnexported(Database{}, Routes{})); diff != "" {
		t.Error(diff)
	}
}

func TestEveryProblemIsReportedAtOnceWithItsLine(t *testing.T) {
	_, r := load(t, `node: "edge a"
lisen: [127.0.0.1:1]
limits:
  max_session: 3
  max_logins: -1
  login_timeout: 15
timeouts: {idle_session: -5s, drain: soon}
databases:
  app:
    upstream: postgres://u@db
    pool: {mode: transaction, size: 50}
    sweep: perhaps
    contrl: {}
  bad: {pool: {mode: statement}}
auth: {method: scram}
access: []
cluster: {on_stale: never, replicas: 9, nats: http://x}
audit: {stream: true, queries: everything}
proxy_protocol: {trusted: [10.0.0.0/8]}
node: again
contact: "${HOME}"
`)
	got := lines(r.Errors)
	want := []string{
		`1 node: "edge a" is not a node id: 1 to 63 of A-Z a-z 0-9 _ -`,
		`2 lisen: unknown key; did you mean listen?`,
		`4 limits.max_session: unknown key; did you mean max_sessions?`,
		`5 limits.max_logins: -1 is out of range: 1 to 100000`,
		`6 limits.login_timeout: 15 has no unit: write 15s, 15m or 15h`,
		`7 timeouts.idle_session: -5s is out of range: 100ms to 8760h, or 0 to switch it off`,
		`7 timeouts.drain: "soon" is not a duration such as 30s, 5m or 1h30m`,
		`11 databases.app.pool.mode: transaction: not supported in this version (only session)`,
		`11 databases.app.pool.size: not supported in this version`,
		`12 databases.app.sweep: "perhaps" is not true or false`,
		`13 databases.app.contrl: unknown key; did you mean control?`,
		`14 databases.bad: has no upstream`,
		`14 databases.bad.pool.mode: "statement" is not one of session or transaction`,
		`15 auth.method: scram: not supported in this version (only passthrough)`,
		`16 access: not supported in this version`,
		`17 cluster.on_stale: "never" is not one of freeze, drop or serve`,
		`17 cluster.replicas: 9 is out of range: 1 to 5`,
		`17 cluster.nats: http://x: the scheme must be nats or tls`,
		`18 audit.stream: true: not supported in this version (only false)`,
		`18 audit.queries: "everything" is not one of off, fingerprint or text`,
		`19 proxy_protocol.trusted: not supported in this version`,
		`20 node: is set twice, first in line 1`,
		`21 contact: ${...} is not replaced here, only in databases.*.upstream, databases.*.control.user and cluster.nats`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestOneBadLineIsOneProblem(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"syntax":                {"node: [a\n", "2: did not find expected ',' or ']'"},
		"tab":                   {"a:\n\tb: 1\n", "2: found character that cannot start any token"},
		"not a mapping":         {"- a\n", "1: the configuration must be a mapping of keys to values"},
		"section is a word":     {"limits: many\n", "1 limits: this must be a mapping of keys to values"},
		"list for a scalar":     {"node: [a, b]\n", "1 node: must be a plain value, not a list"},
		"mapping for a scalar":  {"contact: {a: b}\n", "1 contact: must be a plain value, not a mapping"},
		"no address":            {"listen: []\n", "1 listen: lists no address"},
		"no port":               {"listen: [localhost]\n", `1 listen: "localhost" is not an address of the form host:port`},
		"port too large":        {"listen: ['localhost:70000']\n", `1 listen: "localhost:70000": the port must be a number from 0 to 65535`},
		"relative unix":         {"listen: ['unix:run']\n", "1 listen: unix:run: the directory of a unix socket must be an absolute path"},
		"same address twice":    {"listen: [':6432', ':6432']\n", "1 listen: :6432 is listed twice"},
		"systemd":               {"listen: 'systemd:a b'\n", `1 listen: "systemd:a b": not the name of a systemd socket`},
		"null element":          {"listen: [null]\n", "1 listen: each element must be a plain value"},
		"empty access":          {"access:\n", "1 access: not supported in this version"},
		"database without name": {"databases: {'': {upstream: x}}\n", "1 databases: a database name has 1 to 63 bytes"},
		"database twice":        {"databases:\n  a: {upstream: x}\n  a: {upstream: y}\n", "3 databases.a: is set twice, first in line 2"},
		"unset variable":        {"databases: {a: {upstream: 'postgres://${NOPE}@db'}}\n", "1 databases.a.upstream: environment variable NOPE is not set"},
		"open brace":            {"databases: {a: {upstream: 'postgres://${NOPE@db'}}\n", "1 databases.a.upstream: ${ is not closed by }"},
		"control line in text":  {"contact: \"a\\nb\"\n", "1 contact: holds a character that cannot be printed (U+000A)"},
		"lease":                 {"cluster: {lease: 2s}\n", "1 cluster.lease: 2s is less than three heartbeats of 1s"},
		"long lease":            {"cluster: {lease: 11m}\n", "1 cluster.lease: 11m is out of range: 1s to 10m"},
		"two documents":         {"node: a\n---\nnode: b\n", "2: a second YAML document: the configuration is one"},
		"wrong section":         {"max_sessions: 3\n", "1 max_sessions: unknown key; did you mean limits.max_sessions?"},
		"alias to itself":       {"limits: &a {limits: *a}\n", "1 limits.limits: unknown key; did you mean limits?"},
	} {
		t.Run(name, func(t *testing.T) {
			text := tc.text
			_, r := loadFrom(t, text, Sources{Upstream: "postgres://u@db"})
			if diff := cmp.Diff([]string{tc.want}, lines(r.Errors)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFlagsWinOverEnvironmentWinsOverFile(t *testing.T) {
	text := oneDatabase + "node: from-file\nadmin: 127.0.0.1:1\ncontact: file\n"
	c, r := loadFrom(t, text, Sources{
		Environ: []string{"PGEDGE_NODE=from-env", "PGEDGE_ADMIN=127.0.0.1:2", "PGEDGE_LIMITS_MAX_SESSIONS=9", "PGEDGE_LISTEN=:1, :2",
			"PGEDGE_CLUSTER_NATS=nats://a,nats://b", "PGEDGE_CONTACT=", "CONTROL=x"},
		Flags: []Flag{{Name: "--node", Path: "node", Values: []string{"from-flag"}}},
	})
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if c.Node != "from-flag" || c.Admin != "127.0.0.1:2" || c.Contact != "file" || c.Limits.MaxSessions != 9 {
		t.Errorf("got %+v", c)
	}
	if diff := cmp.Diff([]string{":1", ":2"}, c.Listen); diff != "" {
		t.Error(diff)
	}
	if len(c.Cluster.URLs) != 2 || c.Cluster.URLs[1].Reveal() != "nats://b" {
		t.Errorf("got %d URLs", len(c.Cluster.URLs))
	}
}

func TestEnvironmentProblemsNameTheVariable(t *testing.T) {
	_, r := load(t, oneDatabase, "CONTROL=x", "PGEDGE_LIMITS_MAX_LOGINS=none", "PGEDGE_TLS_MODE=require", "PGEDGE_SERVICE_HOST=10.0.0.1", "PGEDGE_NATS=nats://x")
	want := []string{
		`PGEDGE_LIMITS_MAX_LOGINS limits.max_logins: "none" is not a whole number`,
		`PGEDGE_TLS_MODE tls.mode: require: not supported in this version (only disable)`,
	}
	if diff := cmp.Diff(want, lines(r.Errors)); diff != "" {
		t.Error(diff)
	}
	if got := lines(r.Warnings); len(got) != 1 || !strings.HasPrefix(got[0], "PGEDGE_SERVICE_HOST: ") {
		t.Errorf("warnings: %q", got)
	}
}

func TestAVariableUsedAsReferenceIsNotReportedAsUnknown(t *testing.T) {
	text := "databases: {'*': {upstream: 'postgres://control:${PGEDGE_CONTROL}@db'}}\n"
	_, r := load(t, text, "PGEDGE_CONTROL=x")
	if len(r.Errors)+len(r.Warnings) != 0 {
		t.Errorf("got %q %q", lines(r.Errors), lines(r.Warnings))
	}
}

func TestAPasswordFromTheEnvironmentNeedsNoEncoding(t *testing.T) {
	c, r := load(t, oneDatabase, "CONTROL=p@ss/w:rd?#%")
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if got, want := c.Databases["*"].Upstream.Reveal(), "postgres://control:p%40ss%2Fw%3Ard%3F%23%25@db:5432/app"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestAWholeURLCanComeFromTheEnvironment(t *testing.T) {
	c, r := load(t, "databases: {'*': {upstream: '${URL}'}}\n", "URL=postgres://a:b%40@db/x")
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if got := c.Databases["*"].Upstream.Reveal(); got != "postgres://a:b%40@db/x" {
		t.Errorf("got %s", got)
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	const url = "postgres://control:hunter2@db:5432/app?password=hunter2&sslmode=disable"
	c, r := loadFrom(t, "node: a\n", Sources{Upstream: url, Flags: []Flag{{Name: "--nats", Path: "cluster.nats", Values: []string{"nats://hunter2@h:1"}}}, CheckUpstream: func(u string) error {
		return errors.New("cannot use " + u)
	}})
	var b strings.Builder
	c.Summary(&b)
	fmt.Fprintf(&b, "%v %+v %#v %s\n", c, c, *c, r.Err())
	for _, p := range r.Warnings {
		fmt.Fprintln(&b, p)
	}
	if strings.Contains(b.String(), "hunter2") {
		t.Errorf("the secret is printed:\n%s", b.String())
	}
	if !strings.Contains(r.Err().Error(), "postgres://control:***@db:5432/app?password=***&sslmode=disable") {
		t.Errorf("got %v", r.Err())
	}
}

func TestSecretFiles(t *testing.T) {
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		err     string
		warning string
	}{
		"good":             {"s3cret\n", 0o600, "", ""},
		"group readable":   {"s3cret\n", 0o640, "", "can be read by its group"},
		"others can read":  {"s3cret\n", 0o644, "lets others read or write it", ""},
		"others can write": {"s3cret\n", 0o622, "lets others read or write it", ""},
		"empty":            {"\n", 0o600, "is empty", ""},
		"two lines":        {"a\nb\n", 0o600, "more than one line", ""},
		"huge":             {strings.Repeat("a", 5000), 0o600, "longer than 4096 bytes", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tc.mode); err != nil {
				t.Fatal(err)
			}
			c, r := load(t, "databases:\n  '*':\n    upstream: postgres://db\n    control:\n      user: control\n      password_file: "+path+"\n")
			if tc.err == "" {
				if r.Err() != nil || c.Databases["*"].ControlPassword.Reveal() != "s3cret" {
					t.Errorf("got %v, %q", r.Err(), c.Databases["*"].ControlPassword.Reveal())
				}
			} else if len(r.Errors) != 1 || r.Errors[0].Line() != 6 || !strings.Contains(r.Errors[0].Text, tc.err) {
				t.Errorf("got %q", lines(r.Errors))
			}
			if tc.warning != "" && (len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].Text, tc.warning)) {
				t.Errorf("got %q", lines(r.Warnings))
			}
		})
	}
}

func TestWarningsSayWhatWillNotWork(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"no control role": {"databases: {a: {upstream: 'postgres://db'}}", "no kill is verified"},
		"clear password":  {"databases: {a: {upstream: 'postgres://u:p@db'}}", "holds a secret in clear text"},
		"open listener":   {"listen: ['0.0.0.0:6432']\n" + oneDatabase, "clients connect without TLS"},
		"open admin":      {"admin: ':8432'\n" + oneDatabase, "can be read by everybody"},
	} {
		t.Run(name, func(t *testing.T) {
			_, r := load(t, tc.text, "CONTROL=x")
			if r.Err() != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].Text, tc.want) {
				t.Errorf("errors %q warnings %q", lines(r.Errors), lines(r.Warnings))
			}
		})
	}
}

func TestAMissingFileAndAMissingDatabaseAreErrors(t *testing.T) {
	_, r := Load(Sources{File: filepath.Join(t.TempDir(), "none.yaml")})
	if len(r.Errors) != 1 || !strings.Contains(r.Errors[0].String(), "no such file") {
		t.Errorf("got %q", lines(r.Errors))
	}
	if _, r := Load(Sources{}); len(r.Errors) != 1 || r.Errors[0].Key != "databases" {
		t.Errorf("got %q", lines(r.Errors))
	}
}

// Every scalar key has exactly one variable: two keys that map to one name would make one of them unreachable.
func TestVariablesAreUnique(t *testing.T) {
	seen := map[string]string{}
	for _, k := range rootKeys {
		v := Variable(k.path)
		if other, dup := seen[v]; dup {
			t.Errorf("%s stands for %s and %s", v, other, k.path)
		}
		seen[v] = k.path
		if !k.each && !k.later && k.set == nil && len(k.only) == 0 {
			t.Errorf("%s can never be set", k.path)
		}
	}
}

func FuzzLoadNeverPanics(f *testing.F) {
	f.Add([]byte(oneDatabase))
	f.Add([]byte("limits: &a {limits: *a}\n<<: *a\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := &loader{cfg: Default(), report: &Report{}, placed: map[string]place{}, usedEnv: map[string]bool{},
			lookup: func(string) (string, bool) { return "x", true }}
		l.apply(b)
		l.check()
	})
}

func TestASweepWithoutAControlRoleIsAnError(t *testing.T) {
	_, r := load(t, "databases:\n  app:\n    upstream: postgres://db:5432/app\n    sweep: true\n")
	if got := lines(r.Errors); len(got) != 1 || !strings.HasPrefix(got[0], "4 databases.app.sweep: needs a control role") {
		t.Errorf("problems: %q", got)
	}
}
