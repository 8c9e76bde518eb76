package engine

import (
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pgedge/revoke"
)

// latencyBounds are the buckets of kill latencies in seconds: 50 µs to 10 s.
var latencyBounds = []float64{.00005, .0001, .0002, .0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10}

// engineMetrics are all metrics of the engine. No label ever holds a principal, a role or an address.
type engineMetrics struct {
	set                *metrics.Set
	bytesIn            *metrics.Counter
	bytesOut           *metrics.Counter
	transactions       *metrics.Counter
	bytesAfterCut      *metrics.Counter
	bugs               *metrics.Counter
	acceptErrors       *metrics.Counter
	cancels            *metrics.Counter
	cancelsForwarded   *metrics.Counter
	cancelsIdle        *metrics.Counter
	cancelsUnreachable *metrics.Counter
	cancelsUnknown     *metrics.Counter
	cancelsDropped     *metrics.Counter
	verifyTimeouts     *metrics.Counter
	sweptLeftOver      *metrics.Counter
	sweptDirect        *metrics.Counter
	loginSeconds       *metrics.PrometheusHistogram
	cutSeconds         *metrics.PrometheusHistogram
	closedSeconds      *metrics.PrometheusHistogram
	verifiedSeconds    *metrics.PrometheusHistogram
	pausedSides        atomic.Int64
	frozenSessions     atomic.Int64
}

func newEngineMetrics(set *metrics.Set) *engineMetrics {
	m := &engineMetrics{
		set:                set,
		bytesIn:            set.NewCounter(`pgedge_bytes_total{direction="in"}`),
		bytesOut:           set.NewCounter(`pgedge_bytes_total{direction="out"}`),
		transactions:       set.NewCounter(`pgedge_transactions_total`),
		bytesAfterCut:      set.NewCounter(`pgedge_bytes_after_cut_total`),
		bugs:               set.NewCounter(`pgedge_bugs_total`),
		acceptErrors:       set.NewCounter(`pgedge_accept_errors_total`),
		cancels:            set.NewCounter(`pgedge_cancels_total{result="relayed"}`),
		cancelsForwarded:   set.NewCounter(`pgedge_cancels_total{result="forwarded"}`),
		cancelsIdle:        set.NewCounter(`pgedge_cancels_total{result="idle"}`),
		cancelsUnreachable: set.NewCounter(`pgedge_cancels_total{result="unreachable"}`),
		cancelsUnknown:     set.NewCounter(`pgedge_cancels_total{result="unknown"}`),
		cancelsDropped:     set.NewCounter(`pgedge_cancels_total{result="dropped"}`),
		sweptLeftOver:      set.NewCounter(`pgedge_swept_backends_total{of="silent"}`),
		sweptDirect:        set.NewCounter(`pgedge_swept_backends_total{of="direct"}`),
		verifyTimeouts:     set.NewCounter(`pgedge_revocation_timeouts_total`),
		loginSeconds:       set.NewPrometheusHistogramExt(`pgedge_login_seconds`, latencyBounds),
		cutSeconds:         set.NewPrometheusHistogramExt(`pgedge_revocation_cut_seconds`, latencyBounds),
		closedSeconds:      set.NewPrometheusHistogramExt(`pgedge_revocation_closed_seconds`, latencyBounds),
		verifiedSeconds:    set.NewPrometheusHistogramExt(`pgedge_revocation_verified_seconds`, latencyBounds),
	}
	for r := reasonNone + 1; r < reasonCount; r++ {
		m.set.GetOrCreateCounter(`pgedge_closes_total{reason="` + r.String() + `"}`)
	}
	m.logins("ok")
	m.logins("refused")
	return m
}

func (m *engineMetrics) closed(r Reason) {
	m.set.GetOrCreateCounter(`pgedge_closes_total{reason="` + r.String() + `"}`).Inc()
}

func (m *engineMetrics) logins(result string) *metrics.Counter {
	return m.set.GetOrCreateCounter(`pgedge_logins_total{result="` + result + `"}`)
}

// stage observes the latencies of a receipt; the stage verified carries all three.
func (m *engineMetrics) stage(stage progress, r *revoke.Receipt) {
	if stage != prVerified || r.SupersededBy > 0 {
		return
	}
	seconds := func(us int64) float64 { return (time.Duration(us) * time.Microsecond).Seconds() }
	m.cutSeconds.Update(seconds(r.CutUS))
	m.closedSeconds.Update(seconds(r.ClosedUS))
	m.verifiedSeconds.Update(seconds(r.VerifiedUS))
}

// registerGauges adds what is counted when it is asked for. Session states cost a walk over the index.
func (m *engineMetrics) registerGauges(set *metrics.Set, e *Engine) {
	for _, state := range []string{"login", "idle", "active", "idle_in_transaction"} {
		set.NewGauge(`pgedge_sessions{state="`+state+`"}`, func() float64 {
			n := 0
			for _, s := range e.index.all() {
				if s.stateName() == state {
					n++
				}
			}
			return float64(n)
		})
	}
	set.NewGauge(`pgedge_sessions_limit`, func() float64 { return float64(e.capacity.sessions) })
	set.NewGauge(`pgedge_frozen_sessions`, func() float64 { return float64(m.frozenSessions.Load()) })
	set.NewGauge(`pgedge_paused_sides`, func() float64 { return float64(m.pausedSides.Load()) })
}
