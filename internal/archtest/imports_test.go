package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "pgedge"

// row says what the packages under a folder may import beside the standard library and their own folder. A prefix
// covers everything below it.
type row struct {
	folder string
	own    []string // folders of this project
	others []string // modules or packages of others
	why    string
}

const (
	gnet         = "github.com/panjf2000/gnet/v2"
	pgx          = "github.com/jackc/pgx/v5"
	pgproto      = "github.com/jackc/pgx/v5/pgproto3"
	natsClient   = "github.com/nats-io/nats.go"
	natsServer   = "github.com/nats-io/nats-server/v2"
	nuid         = "github.com/nats-io/nuid"
	metrics      = "github.com/VictoriaMetrics/metrics"
	ulid         = "github.com/oklog/ulid/v2"
	systemd      = "github.com/coreos/go-systemd/v22"
	cobra        = "github.com/spf13/cobra"
	pflag        = "github.com/spf13/pflag"
	yaml         = "go.yaml.in/yaml/v4"
	sys          = "golang.org/x/sys"
	hdrhistogram = "github.com/HdrHistogram/hdrhistogram-go"
	plot         = "gonum.org/v1/plot"
	rate         = "golang.org/x/time/rate"
)

// table is the table of docs/architecture.md.
var table = []row{
	{"revoke", nil, nil,
		"the domain is pure, so that a simulation can drive it and nothing outside can change what it means"},
	{"codec", nil, []string{pgproto},
		"bytes in, messages out: with sockets or state it could not be fuzzed and replayed at every split"},
	{"engine", []string{"revoke", "codec"}, []string{gnet, pgx, metrics, sys, rate},
		"the only package that knows gnet; it declares what it needs of journal, audit and authentication as interfaces"},
	{"cluster", []string{"revoke"}, []string{natsClient, natsServer, nuid, ulid, metrics, sys, rate},
		"the only package that knows NATS; it carries the state machine of revoke and decides nothing itself"},
	{"identity", []string{"revoke"}, []string{metrics, rate},
		"outside events become facts and nothing else"},
	{"audit", []string{"revoke"}, []string{metrics},
		"records what happened; nothing may depend on how"},
	{"admin", []string{"revoke"}, []string{metrics},
		"shows state through interfaces it declares, so that a page can never reach a session directly"},
	{"cmd", []string{"revoke", "codec", "engine", "cluster", "identity", "audit", "admin", "cmd", "internal/pgserver"},
		[]string{cobra, pflag, yaml, ulid, metrics, pgx, sys, systemd},
		"wires everything; the only place where siblings meet. NATS and gnet stay behind cluster and engine"},
	{"bench", []string{"internal/pgserver", "internal/fleet"}, []string{pgx, natsClient, sys, yaml, hdrhistogram, plot},
		"measures the binary from outside, as it measures PgBouncer"},
	{"internal/pgserver", nil, []string{pgx},
		"starts a server for tests, demo and bench, so it knows nothing of pgedge"},
	{"internal/pgtest", []string{"internal/pgserver"}, []string{pgx},
		"a test kit that knew the code under test could hide its faults"},
	{"docs/model", nil, nil, "runs the checker on the model; what the code does is the simulation's business"},
	{"internal/sim", []string{"revoke"}, nil,
		"drives the state machine with a simulated world; with a real part in it a seed would not be a run"},
	{"internal/natsd", nil, []string{natsServer}, "the pinned NATS server as a program, so that fleets can kill it"},
	{"internal/fleet", []string{"internal/pgserver"}, []string{pgx, natsClient},
		"runs the programs as they are run in earnest; it knows pgedge by its binary and its command line only"},
	{"internal/archtest", nil, nil, "reads the source of everything and needs none of it"},
}

// testKit may be imported by any test.
var testKit = []string{"internal/pgtest", "internal/pgserver"}

type goPackage struct {
	ImportPath   string
	Name         string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	// -e: what does not compile is somebody else's failing test; its imports are still worth checking.
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot list the packages: %v\n%s", err, stderr.String())
	}
	var pkgs []goPackage
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("cannot read the list of packages: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestPackagesImportOnlyWhatTheArchitectureAllows(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, complaint := range checkImports(p) {
			t.Error(complaint)
		}
	}
}

func TestNoPackageIsADrawerForEverything(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, element := range append(strings.Split(p.ImportPath, "/"), p.Name) {
			switch element {
			case "util", "utils", "common", "pkg", "helpers", "misc":
				t.Errorf("%s: a package is named for what it is; %q says nothing", p.ImportPath, element)
			}
		}
	}
}

// checkImports returns one sentence per import that the table forbids. Tests may use any library and the test kit,
// and keep to the same direction inside the project.
func checkImports(p goPackage) []string {
	folder := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
	r := rowFor(folder)
	if r == nil {
		return []string{p.ImportPath + ": no row in the import table; add one, with its reason, here and in docs/architecture.md"}
	}
	var complaints []string
	forbid := func(kind, path string) {
		complaints = append(complaints, p.ImportPath+kind+" must not import "+path+": "+r.why)
	}
	for _, path := range p.Imports {
		switch own, mine := strings.CutPrefix(path, module+"/"); {
		case mine && !covered(own, append(r.own, r.folder)):
			forbid("", path)
		case !mine && !standard(path) && !covered(path, r.others):
			forbid("", path)
		}
	}
	for _, path := range append(p.TestImports, p.XTestImports...) {
		if own, mine := strings.CutPrefix(path, module+"/"); mine && !covered(own, append(append([]string{r.folder}, r.own...), testKit...)) {
			forbid(" (its tests)", path)
		}
	}
	return complaints
}

// rowFor returns the row of the longest folder that holds a package, nil when there is none.
func rowFor(folder string) *row {
	var best *row
	for i := range table {
		if covered(folder, []string{table[i].folder}) && (best == nil || len(table[i].folder) > len(best.folder)) {
			best = &table[i]
		}
	}
	return best
}

func covered(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// standard reports whether a path is of the standard library: its first element has no dot.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

func TestTheImportCheckSeesEachKindOfOffence(t *testing.T) {
	cases := []struct {
		name string
		pkg  goPackage
		want int
	}{
		{"allowed", goPackage{ImportPath: "pgedge/engine", Imports: []string{"net", "pgedge/revoke", gnet}}, 0},
		{"own subpackage", goPackage{ImportPath: "pgedge/engine", Imports: []string{"pgedge/engine/wheel"}}, 0},
		{"sibling", goPackage{ImportPath: "pgedge/engine", Imports: []string{"pgedge/cluster"}}, 1},
		{"library", goPackage{ImportPath: "pgedge/revoke", Imports: []string{ulid}}, 1},
		{"part of a library", goPackage{ImportPath: "pgedge/codec", Imports: []string{pgproto, pgx + "/pgconn"}}, 1},
		{"prefix that is not a path element", goPackage{ImportPath: "pgedge/revoke", Imports: []string{"pgedge/revoker"}}, 1},
		{"test kit in a test", goPackage{ImportPath: "pgedge/engine", XTestImports: []string{"pgedge/internal/pgtest"}}, 0},
		{"test kit in the product", goPackage{ImportPath: "pgedge/engine", Imports: []string{"pgedge/internal/pgtest"}}, 1},
		{"sibling in a test", goPackage{ImportPath: "pgedge/engine", TestImports: []string{"pgedge/cluster"}}, 1},
		{"no row", goPackage{ImportPath: "pgedge/newcomer"}, 1},
	}
	for _, c := range cases {
		if got := checkImports(c.pkg); len(got) != c.want {
			t.Errorf("%s: %d complaints %q, want %d", c.name, len(got), got, c.want)
		}
	}
}
