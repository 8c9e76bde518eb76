package engine

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"pgedge/revoke"
)

var allocated any

// No test runs beside this one, so every allocation of the process is counted, whichever goroutine makes it. The race
// detector adds none on this path.
func TestTheRelayPathAllocatesNothing(t *testing.T) {
	const times = 2000
	for _, x := range exchanges() {
		t.Run(x.name, func(t *testing.T) {
			n, a := startAsker(t, x)
			ask := func() uint64 {
				t.Helper()
				for range 10 {
					if err := a.once(); err != nil {
						t.Fatal(err)
					}
				}
				var before, after runtime.MemStats
				runtime.GC() // what it allocates by itself comes now
				runtime.ReadMemStats(&before)
				for range times {
					if err := a.once(); err != nil {
						t.Fatal(err)
					}
				}
				runtime.ReadMemStats(&after)
				return after.Mallocs - before.Mallocs
			}
			// The runtime, or what an earlier test has left to be ended, may do something in between, and not three times
			// in a row; one allocation per exchange would be as many as there are.
			if got := min(ask(), ask(), ask()); got > times/100 {
				t.Errorf("%d exchanges made %d allocations", times, got)
			}
			n.onLoop(n.loops[0], func() { testRelayHook = func(*session) { allocated = new([64]byte) } })
			defer n.onLoop(n.loops[0], func() { testRelayHook = nil })
			if got := ask(); got < 2*times {
				t.Errorf("%d exchanges with an allocation in each direction made %d: the count does not see them", times, got)
			}
		})
	}
}

// Every mutex that the engine has is held, by this test, while a query goes to Postgres and its answer comes back. A new
// one is found by reflection, and where it cannot be reached from a session and its engine the source tells on it.
func TestAQueryPassesWhileEveryLockIsHeld(t *testing.T) {
	n := startNode(t, func(c *Config) {
		quiet(c)
		c.Loops = 1
	})
	conn := n.login("alice")
	if _, err := conn.Exec(bounded(t), "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	s := n.only("alice")
	n.orders.get(revoke.Order{Key: "open"}) // an order has a lock too

	held := lockBox{seen: make(map[unsafe.Pointer]bool)}
	s.onLoop(func() { // what the loop owns is read there
		held.take(reflect.ValueOf(n.Engine))
		held.take(reflect.ValueOf(s))
	})
	for _, name := range declaredLocks(t) {
		if !held.names()[name] {
			t.Errorf("%s is a mutex of the engine that this test does not hold: make it reachable from the session or its engine", name)
		}
	}
	relayed, free := 0, ""
	s.onLoop(func() {
		testRelayHook = func(*session) { // on the loop, in the middle of the relay
			relayed++
			for _, l := range held.locks {
				if l.try() {
					l.unlock()
					free = l.name
				}
			}
		}
	})
	answered := make(chan error, 1)
	go func() {
		var one int
		err := conn.QueryRow(bounded(t), "SELECT 1").Scan(&one)
		if err == nil {
			_, err = conn.Exec(bounded(t), "SELECT generate_series(1, 10000)")
		}
		answered <- err
	}()
	select {
	case err := <-answered:
		held.unlock()
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		held.unlock()
		t.Fatal("a query waits for a lock of the engine")
	}
	s.onLoop(func() { testRelayHook = nil })
	if relayed < 4 || free != "" {
		t.Errorf("%d buffers were relayed, want 4 at least; %q was free meanwhile", relayed, free)
	}
	t.Logf("%d buffers were relayed while %d locks of %d kinds were held", relayed, len(held.locks), len(held.names()))
}

// heldLock is one mutex, found at a place of the engine.
type heldLock struct {
	name   string // type and field
	unlock func()
	try    func() bool
}

// lockBox takes the mutexes of this project's types below a value, those of a struct before it reads on in it. It
// follows pointers, slices, arrays, maps and interfaces to types of this project and of the metrics, whose locks a
// look-up by name would take, and leaves alone what belongs to others.
type lockBox struct {
	seen  map[unsafe.Pointer]bool
	locks []heldLock
}

func (b *lockBox) unlock() {
	for _, l := range b.locks {
		l.unlock()
	}
}

func (b *lockBox) names() map[string]bool {
	names := make(map[string]bool)
	for _, l := range b.locks {
		names[l.name] = true
	}
	return names
}

func (b *lockBox) take(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && looksInto(v.Type().Elem()) {
			if p := v.UnsafePointer(); !b.seen[p] {
				b.seen[p] = true
				b.take(v.Elem())
			}
		}
	case reflect.Interface:
		if !v.IsNil() && looksInto(v.Elem().Type()) {
			b.take(v.Elem())
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if !looksInto(v.Type().Elem()) {
				return
			}
			b.take(v.Index(i))
		}
	case reflect.Map:
		for iter := v.MapRange(); iter.Next(); {
			for _, at := range []reflect.Value{iter.Key(), iter.Value()} {
				if looksInto(at.Type()) {
					b.take(at)
				}
			}
		}
	case reflect.Struct:
		b.fields(v)
	default:
	}
}

func (b *lockBox) fields(v reflect.Value) {
	if !v.CanAddr() {
		return
	}
	for i := range v.NumField() {
		name := v.Type().Name() + "." + v.Type().Field(i).Name
		switch at := v.Field(i).Addr().UnsafePointer(); v.Field(i).Type() {
		case reflect.TypeFor[sync.Mutex]():
			m := (*sync.Mutex)(at)
			m.Lock()
			b.locks = append(b.locks, heldLock{name, m.Unlock, m.TryLock})
		case reflect.TypeFor[sync.RWMutex]():
			m := (*sync.RWMutex)(at)
			m.Lock()
			b.locks = append(b.locks, heldLock{name, m.Unlock, m.TryLock})
		}
	}
	for i := range v.NumField() {
		f := v.Field(i)
		switch {
		case strings.HasPrefix(f.Type().String(), "atomic.Pointer["):
			elem := f.Type().Field(0).Type.Elem().Elem() // its first field is a [0]*T, its only word the pointer
			if p := atomic.LoadPointer((*unsafe.Pointer)(f.Addr().UnsafePointer())); p != nil && looksInto(elem) {
				b.take(reflect.NewAt(elem, p))
			}
		case looksInto(f.Type()):
			b.take(f)
		}
	}
}

// looksInto tells whether locks of interest can be behind a type, without a look at a value.
func looksInto(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return looksInto(t.Elem())
	case reflect.Map:
		return looksInto(t.Key()) || looksInto(t.Elem())
	case reflect.Struct, reflect.Interface:
		return t.PkgPath() == "" || strings.HasPrefix(t.PkgPath(), "pgedge/") || strings.HasPrefix(t.PkgPath(), "github.com/VictoriaMetrics/")
	default:
		return false
	}
}

// declaredLocks are the mutexes of this package's types and variables, by its source.
func declaredLocks(t *testing.T) (names []string) {
	t.Helper()
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range tree.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, spec := range g.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					if st, ok := spec.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							names = append(names, lockNames(spec.Name.Name+".", field.Type, field.Names)...)
						}
					}
				case *ast.ValueSpec:
					names = append(names, lockNames("var ", spec.Type, spec.Names)...)
				}
			}
		}
	}
	if len(names) < 10 {
		t.Errorf("only %d mutexes were found in the source: %q", len(names), names)
	}
	return names
}

func lockNames(prefix string, typ ast.Expr, idents []*ast.Ident) (names []string) {
	sel, ok := typ.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Mutex" && sel.Sel.Name != "RWMutex" {
		return nil
	}
	if len(idents) == 0 {
		return []string{prefix + sel.Sel.Name} // embedded
	}
	for _, id := range idents {
		names = append(names, prefix+id.Name)
	}
	return names
}
