package cluster

import (
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"

	"pgedge/revoke"
)

// nodeMetrics is everything a node counts. No label ever holds a principal, a role or an address.
type nodeMetrics struct {
	factsFast    map[revoke.Verb]*metrics.Counter
	factsJournal map[revoke.Verb]*metrics.Counter

	factsRaw        *metrics.Counter
	factsRejected   *metrics.Counter
	factsSuperseded *metrics.Counter
	factsHealed     *metrics.Counter
	factsRescued    *metrics.Counter
	factsOverflow   *metrics.Counter
	rejectedUnsent  *metrics.Counter
	factsStored     *metrics.Counter
	factsStoreError *metrics.Counter

	heartbeats        *metrics.Counter
	heartbeatFailures *metrics.Counter
	reloads           *metrics.Counter
	cancelsReceived   *metrics.Counter

	receiptsStored  *metrics.Counter
	receiptsRetried *metrics.Counter
	receiptsDropped *metrics.Counter

	journalAlarm atomic.Bool
}

// newNodeMetrics registers the metrics of one node. The gauges read from the node whenever they are scraped.
func newNodeMetrics(set *metrics.Set, n *Node) *nodeMetrics {
	m := &nodeMetrics{
		factsFast: map[revoke.Verb]*metrics.Counter{
			revoke.VerbKill:    set.GetOrCreateCounter(`pgedge_facts_total{verb="kill",via="fast"}`),
			revoke.VerbRevoke:  set.GetOrCreateCounter(`pgedge_facts_total{verb="revoke",via="fast"}`),
			revoke.VerbSuspend: set.GetOrCreateCounter(`pgedge_facts_total{verb="suspend",via="fast"}`),
		},
		factsJournal: map[revoke.Verb]*metrics.Counter{
			revoke.VerbKill:      set.GetOrCreateCounter(`pgedge_facts_total{verb="kill",via="journal"}`),
			revoke.VerbRevoke:    set.GetOrCreateCounter(`pgedge_facts_total{verb="revoke",via="journal"}`),
			revoke.VerbSuspend:   set.GetOrCreateCounter(`pgedge_facts_total{verb="suspend",via="journal"}`),
			revoke.VerbReinstate: set.GetOrCreateCounter(`pgedge_facts_total{verb="reinstate",via="journal"}`),
		},
		factsRaw:          set.GetOrCreateCounter(`pgedge_facts_raw_total`),
		factsRejected:     set.GetOrCreateCounter(`pgedge_facts_rejected_total`),
		factsSuperseded:   set.GetOrCreateCounter(`pgedge_facts_superseded_total`),
		factsHealed:       set.GetOrCreateCounter(`pgedge_facts_healed_total`),
		factsRescued:      set.GetOrCreateCounter(`pgedge_facts_rescued_total`),
		factsOverflow:     set.GetOrCreateCounter(`pgedge_facts_overflow_total`),
		rejectedUnsent:    set.GetOrCreateCounter(`pgedge_facts_rejected_unpublished_total`),
		factsStored:       set.GetOrCreateCounter(`pgedge_facts_stored_by_node_total`),
		factsStoreError:   set.GetOrCreateCounter(`pgedge_facts_store_failures_total`),
		heartbeats:        set.GetOrCreateCounter(`pgedge_heartbeats_total`),
		heartbeatFailures: set.GetOrCreateCounter(`pgedge_heartbeat_failures_total`),
		cancelsReceived:   set.GetOrCreateCounter(`pgedge_cancels_received_total`),
		reloads:           set.GetOrCreateCounter(`pgedge_journal_reloads_total`),
		receiptsStored:    set.GetOrCreateCounter(`pgedge_receipts_stored_total`),
		receiptsRetried:   set.GetOrCreateCounter(`pgedge_receipts_retried_total`),
		receiptsDropped:   set.GetOrCreateCounter(`pgedge_receipts_dropped_total`),
	}
	// A node that starts in a process where another one has ended takes its gauges over.
	gauge := func(name string, f func() float64) {
		set.UnregisterMetric(name)
		set.NewGauge(name, f)
	}
	gauge(`pgedge_journal_seq`, func() float64 { return float64(n.appliedSeq()) })
	gauge(`pgedge_journal_lag`, func() float64 { return float64(n.pending.Load()) })
	gauge(`pgedge_journal_unwritable`, func() float64 { return boolGauge(m.journalAlarm.Load()) })
	gauge(`pgedge_journal_epoch`, func() float64 { return float64(n.stats().Epoch) })
	gauge(`pgedge_lease_remaining_seconds`, func() float64 { return max(0, n.LeaseRemaining().Seconds()) })
	gauge(`pgedge_stale`, func() float64 { return boolGauge(!n.Fresh()) })
	gauge(`pgedge_facts_unsettled`, func() float64 { return float64(n.unsettled()) })
	gauge(`pgedge_receipts_pending`, func() float64 { return float64(n.receipts.pending()) })
	gauge(`pgedge_nats_connected`, func() float64 { return boolGauge(n.nc.IsConnected()) })
	return m
}

func boolGauge(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
