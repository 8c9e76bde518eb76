package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"pgedge/cluster"
)

// nats looks at the journal with the node's own credentials. It reports whether there is one to be asked.
func (d *doctor) nats(cfg cluster.Config) bool {
	got, err := cluster.Diagnose(d.deadline, cfg)
	var right *cluster.MissingRightError
	switch {
	case errors.Is(err, cluster.ErrNotStarted):
		d.note(levelSkip, "nats", "", "%v", err)
		return false
	case errors.As(err, &right):
		d.note(levelFail, "nats", "", "%v", err)
		return false
	case err != nil:
		d.note(levelFail, "nats", "check cluster.nats, cluster.creds_file and cluster.tls", "%v", err)
		return false
	}
	d.note(levelOK, "nats", "", "%s: version %s, round trip %s", got.Server, got.Version, milliseconds(float64(got.RoundTrip.Microseconds())/1000))
	if len(got.Certificates) > 0 {
		d.expiry("certificates", "nats", got.Certificates, levelFail)
	}
	var wrong *cluster.StreamsError
	switch {
	case errors.As(got.Streams, &wrong):
		d.note(levelFail, "journal", wrong.Fix, "%s", wrong.Problem)
	case got.Streams != nil:
		d.note(levelFail, "journal", "", "%v", got.Streams)
	case got.Read != nil:
		d.note(levelFail, "journal", "", "%v", got.Read)
	case len(got.Behind) > 0:
		d.note(levelWarn, "journal", "look at these servers: nats stream report", "%s, but %s", count(got.Copies, "copy", "copies"), strings.Join(got.Behind, ", "))
	default:
		d.note(levelOK, "journal", "", "both streams are as they have to be, %s; read", count(got.Copies, "copy", "copies"))
	}
	for _, m := range got.Missing {
		d.note(levelFail, "nats rights", "", "%v", m)
	}
	if len(got.Missing) == 0 {
		d.note(levelOK, "nats rights", "", "all that was tried is allowed; not tried: %s", strings.Join(got.Untried, ", "))
	}
	if got.Streams == nil {
		d.clockOf("nats", got.ClockAhead, got.RoundTrip)
	}
	return true
}

// fleetView is what the nodes say about themselves.
type fleetView struct {
	client   *cluster.Client
	missing  []string
	backends map[backendKey]bool
}

type backendKey struct {
	pid  uint32
	role string
}

// addSessions adds the sessions that the fleet holds now.
func (v *fleetView) addSessions(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	sessions, missing, err := v.client.Sessions(ctx, cluster.SessionFilter{})
	if err != nil {
		return err
	}
	v.missing = missing
	for _, s := range sessions {
		v.backends[backendKey{s.BackendPID, s.Role}] = true
	}
	return nil
}

func (v *fleetView) knows(pid uint32, role string) bool { return v.backends[backendKey{pid, role}] }

// lookAtFleet asks the nodes, with the credentials of the command line.
func (d *doctor) lookAtFleet(running bool) {
	if !running {
		d.note(levelSkip, "nodes", "", "not looked at: there is no journal to find them in")
		return
	}
	o, err := d.connect.options()
	if err != nil {
		d.note(levelFail, "nodes", "", "%v", err)
		return
	}
	if d.connect.nats == "" && d.connect.context == "" && o.URL == "" {
		// Nothing but the configuration says where the cluster is.
		o.StateDir = d.cfg.StateDir
		if !d.cfg.Cluster.Embedded() {
			o.URL = natsAddress(d.cfg.Cluster)
			if o.Credentials == (cluster.Credentials{}) {
				o.Credentials = natsCredentials(d.cfg.Cluster)
			}
		}
	}
	client, err := cluster.Dial(d.deadline, o)
	var right *cluster.MissingRightError
	switch {
	case errors.As(err, &right):
		d.note(levelSkip, "nodes", "give an observer's or operator's credentials: PGEDGE_NATS with user and password, --nats-creds or --context", "not looked at: %v", err)
		return
	case err != nil:
		d.note(levelSkip, "nodes", "", "not looked at: %v", err)
		return
	}
	d.client = client
	d.nodes(client)
	d.fleet = &fleetView{client: client, backends: make(map[backendKey]bool)}
	if err := d.fleet.addSessions(d.deadline); err != nil {
		d.note(levelSkip, "nodes", "", "their sessions are not known: %v", err)
		d.fleet = nil
	}
}

func (d *doctor) nodes(client *cluster.Client) {
	ctx, cancel := context.WithTimeout(d.deadline, queryTimeout)
	defer cancel()
	nodes, err := client.Nodes(ctx)
	if err != nil {
		d.note(levelSkip, "nodes", "", "not looked at: %v", err)
		return
	}
	now := time.Now()
	live := 0
	var versions []string
	for _, n := range nodes {
		if !n.Presence.Listed(now) || n.Status == "left" {
			continue
		}
		name := n.Presence.Node
		switch {
		case n.Status != "live":
			d.note(levelWarn, "nodes", "start it again, or pgedge nodes forget "+name+" if it certainly does not run", "%s is %s, heard %s ago: a verdict waits for it or cannot vouch for it", name, n.Status, heard(n.HeardMS))
			continue
		case n.OtherJournal:
			d.note(levelFail, "nodes", "point it at the same NATS and start it again", "%s follows another journal", name)
		case n.TableDiffers:
			d.note(levelFail, "nodes", "start it again: it reads the journal anew", "%s has applied the same revocations and holds another table", name)
		case n.Report == nil:
			d.note(levelWarn, "nodes", "see its log", "%s is live and did not answer", name)
		case n.Report.Unwritable:
			d.note(levelFail, "nodes", "see its log, its disk and NATS", "%s cannot write the journal", name)
		case n.Report.NotReady != "":
			d.note(levelWarn, "nodes", "", "%s refuses logins: %s", name, n.Report.NotReady)
		}
		live++
		if !slices.Contains(versions, n.Presence.Version) {
			versions = append(versions, n.Presence.Version)
		}
	}
	if len(versions) > 1 {
		d.note(levelWarn, "nodes", "finish the roll-out", "they run different versions: %s", strings.Join(versions, ", "))
	}
	d.note(levelOK, "nodes", "", "%s live", count(live, "node is", "nodes are"))
}
