package engine

import (
	"context"
	"strings"
	"testing"
	"time"

	"pgedge/internal/pgtest"
)

func TestAProbeTellsWhatTheControlRoleCanDo(t *testing.T) {
	pg := pgtest.Start(t, pgtest.Options{TLS: true, HBA: []string{"host all bob 0.0.0.0/0 scram-sha-256"}})
	bob := pgtest.LoginRaw(t, pg.Addr(), "bob", "app")
	defer bob.Close()
	probe := func(user, password, options string) Probe {
		t.Helper()
		u, err := ParseUpstream(pg.URL(user, password, "app") + options)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), pgtest.Patience)
		defer cancel()
		probes, err := ProbeUpstream(ctx, u)
		if err != nil || len(probes) != 1 {
			t.Fatalf("%d probes, %v", len(probes), err)
		}
		return probes[0]
	}

	p := probe("pgedge_control", "control-secret", "?sslmode=require")
	if !p.Usable || !p.ByPort || p.Superuser || p.NoLogin != nil || p.Version < 140000 || p.ClockAhead.Abs() > time.Minute || len(p.Certificates) == 0 || p.HBAHidden == "" {
		t.Errorf("got %+v", p)
	}
	if len(p.Backends) != 1 || p.Backends[0].Role != "bob" || p.Backends[0].Client != bob.LocalAddr() || p.Total != 1 {
		t.Errorf("the backends are %+v", p.Backends)
	}
	if p = probe("pgedge_weak", "weak-secret", ""); p.Usable || !strings.Contains(p.Missing, "pg_read_all_stats") || strings.Contains(p.Missing, "pg_signal_backend") {
		t.Errorf("got %+v", p)
	}
	if p = probe("pgedge_control", "wrong", ""); p.NoLogin == nil || p.Usable {
		t.Errorf("got %+v", p)
	}
	if p = probe("postgres", pgtest.Password("postgres"), ""); !p.Superuser || !p.Usable || len(p.OpenHBA) != 1 && !strings.Contains(strings.Join(p.OpenHBA, " "), "host all bob") {
		t.Errorf("got %+v", p)
	}
	u := Upstream{Hosts: []HostPort{{"127.0.0.1", 1}}}
	if probes, err := ProbeUpstream(context.Background(), u); err != nil || probes[0].Unreachable == nil {
		t.Errorf("got %+v, %v", probes, err)
	}
}
