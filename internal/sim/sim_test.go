package sim

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	update    = flag.Bool("update", false, "write the goldens of the scripts")
	oneSeed   = flag.Uint64("seed", 0, "run this seed of TestRandom alone and print what happens")
	firstSeed = flag.Uint64("first", 1, "the first seed of TestRandom")
	seedCount = flag.Uint64("seeds", 30, "how many seeds TestRandom runs; make sim runs more")
)

func TestRandomSchedulesKeepTheGuarantees(t *testing.T) {
	first, count := *firstSeed, *seedCount
	if *oneSeed != 0 {
		first, count = *oneSeed, 1
	}
	for seed := first; seed < first+count; seed++ {
		w := Random(Config{Seed: seed})
		if err := w.Err(); err != nil {
			t.Fatalf("%s\nseed %d: %v\nreplay: go test ./internal/sim -run TestRandom -seed %d -v", strings.Join(w.Log(), "\n"), seed, err, seed)
		}
		if *oneSeed != 0 {
			t.Log("\n" + strings.Join(w.Log(), "\n"))
		}
	}
}

func TestASeedIsARun(t *testing.T) {
	for seed := uint64(1); seed <= 3; seed++ {
		a, b := Random(Config{Seed: seed}), Random(Config{Seed: seed})
		if !slices.Equal(a.Log(), b.Log()) {
			for i := range min(len(a.Log()), len(b.Log())) {
				if a.Log()[i] != b.Log()[i] {
					t.Fatalf("seed %d: line %d is %q and %q", seed, i, a.Log()[i], b.Log()[i])
				}
			}
			t.Fatalf("seed %d: one run is longer", seed)
		}
	}
}

// Each breakage has to be noticed by a script, or within so many seeds.
func TestWhatIsBrokenOnPurposeIsCaught(t *testing.T) {
	const enough = 400
	for _, b := range Breakages {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			for _, path := range scripts(t) {
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if w, _ := Script(Config{Broken: b}, string(text)); w.Err() != nil {
					t.Logf("%s: %v", path, w.Err())
					return
				}
			}
			for seed := uint64(1); seed <= enough; seed++ {
				if err := Random(Config{Seed: seed, Broken: b}).Err(); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("not caught in %d seeds", enough)
		})
	}
}

func scripts(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	return paths
}

func TestScripts(t *testing.T) {
	for _, path := range scripts(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			w, err := Script(Config{}, string(text))
			got := strings.Join(w.Log(), "\n") + "\n"
			if err != nil {
				t.Fatalf("%v\n%s", err, got)
			}
			golden := strings.TrimSuffix(path, ".txt") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("what happened is not what %s says; look at it, and accept it with -update:\n%s", golden, got)
			}
		})
	}
}
