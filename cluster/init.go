package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// initTimeout bounds the creation of both streams: servers that have just started elect a leader first.
	initTimeout = 20 * time.Second
	// initRequestTimeout bounds one request: without a leader there is no answer at all.
	initRequestTimeout = 3 * time.Second
	initRetry          = 250 * time.Millisecond
	// peersTimeout is how long servers may take to find each other before there are too few of them.
	peersTimeout = 8 * time.Second
)

// Codes of JetStream's refusals that the client library has no name for.
const (
	codeNoPeers               jetstream.ErrorCode = 10005
	codeNoLeader              jetstream.ErrorCode = 10008
	codeInsufficientResources jetstream.ErrorCode = 10023
	codeStorageExceeded       jetstream.ErrorCode = 10047
	codeSubjectOverlap        jetstream.ErrorCode = 10065
	codeReplicasWithoutPeers  jetstream.ErrorCode = 10074
)

// StreamReport is what InitStreams did about one stream.
type StreamReport struct {
	Stream   string    `json:"stream"`
	Result   string    `json:"result"` // created or exists
	Domain   string    `json:"domain"` // "" without JetStream domains
	Created  time.Time `json:"created"`
	Replicas int       `json:"replicas"`
	// Cluster is the NATS cluster that holds the stream, "" for a single server.
	Cluster string `json:"cluster"`
}

// The values of StreamReport.Result.
const (
	StreamCreated = "created"
	StreamExists  = "exists"
)

// InitStreams creates the journal and the receipts with that many copies where they are missing. It never changes a
// stream: one that is there has to be as nodes need it, else the error is a *StreamsError. What could be done is
// reported even with an error.
func InitStreams(ctx context.Context, opts DialOptions, replicas int) ([]StreamReport, error) {
	if replicas < 1 || replicas > 5 {
		return nil, fmt.Errorf("%d replicas: not between 1 and 5", replicas)
	}
	if opts.Timeout <= 0 {
		opts.Timeout = defaultDialTimeout
	}
	urls, err := resolveURL(opts)
	if err != nil {
		return nil, err
	}
	connectCtx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	r := newRights("")
	nothing := func(error) {}
	nc, js, err := connectClient(connectCtx, urls, opts, r, connHooks{
		disconnected: nothing, reconnected: func() {}, asyncError: func(*nats.Subscription, error) {},
	})
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	ctx, unbind := r.bind(ctx)
	defer unbind()
	ctx, cancelAll := context.WithTimeout(ctx, initTimeout)
	defer cancelAll()
	var account *jetstream.AccountInfo
	err = initStep(ctx, func(ctx context.Context) error {
		account, err = js.AccountInfo(ctx)
		return err
	})
	if err != nil {
		return nil, r.explain(explainInit("cannot read the JetStream account on "+nc.ConnectedAddr(), replicas, err))
	}
	var reports []StreamReport
	for _, want := range []jetstream.StreamConfig{journalConfig(replicas), receiptConfig(replicas)} {
		var info *jetstream.StreamInfo
		var result string
		err := initStep(ctx, func(ctx context.Context) error {
			info, result, err = initStream(ctx, js, want)
			return err
		})
		if err != nil {
			what := fmt.Sprintf("cannot create stream %s with %s", want.Name, copies(replicas))
			return reports, r.explain(explainInit(what, replicas, err))
		}
		report := StreamReport{Stream: want.Name, Result: result, Domain: account.Domain, Created: info.Created, Replicas: info.Config.Replicas}
		if info.Cluster != nil {
			report.Cluster = info.Cluster.Name
		}
		reports = append(reports, report)
	}
	return reports, nil
}

func copies(n int) string {
	if n == 1 {
		return "1 copy"
	}
	return fmt.Sprintf("%d copies", n)
}

// initStep tries one step until it works, is refused for good, or the servers have had the time to find each other.
func initStep(ctx context.Context, try func(context.Context) error) error {
	began := time.Now()
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, initRequestTimeout)
			defer cancel()
			return try(ctx)
		}()
		if err == nil || ctx.Err() != nil || !mayPass(err, time.Since(began)) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(initRetry):
		}
	}
}

// mayPass reports whether an error is one of servers that have just started.
func mayPass(err error, waited time.Duration) bool {
	var refused *jetstream.APIError
	if errors.As(err, &refused) {
		switch refused.ErrorCode {
		case codeNoLeader:
			return true
		case codeNoPeers, codeInsufficientResources:
			return waited < peersTimeout
		}
		return false
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout)
}

func initStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (info *jetstream.StreamInfo, result string, err error) {
	s, err := js.Stream(ctx, want.Name)
	result = StreamExists
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		result = StreamCreated
		s, err = js.CreateStream(ctx, want)
	}
	if err != nil {
		return nil, "", err
	}
	info = s.CachedInfo()
	if diff := streamDifferences(info.Config, want); len(diff) > 0 {
		return nil, "", streamDiffers(want, diff)
	}
	return info, result, nil
}

func storageTooSmall(what string, refused *jetstream.APIError) error {
	return fmt.Errorf("%s: JetStream's storage limit is too small (%s): %s reserves %d GiB on each server that holds a copy; raise max_file_store there", what, refused.Description, receiptStream, receiptMaxBytes>>30)
}

// explainInit says what has to change before the streams can be created.
func explainInit(what string, replicas int, err error) error {
	var wrong *StreamsError
	if errors.As(err, &wrong) {
		return wrong
	}
	var refused *jetstream.APIError
	if errors.As(err, &refused) {
		switch refused.ErrorCode {
		case codeReplicasWithoutPeers:
			return fmt.Errorf("%s: this NATS is a single server; add servers, or give --replicas 1 and accept that the journal dies with its disk", what)
		case codeNoPeers, codeInsufficientResources:
			if strings.Contains(refused.Description, "insufficient storage") {
				return storageTooSmall(what, refused)
			}
			return fmt.Errorf("%s: fewer than %d JetStream servers can be reached (%s): start the others, or give a smaller --replicas", what, replicas, refused.Description)
		case codeStorageExceeded:
			return storageTooSmall(what, refused)
		case codeSubjectOverlap:
			return fmt.Errorf("%s: another stream holds subjects below pgedge. already (%s): remove it, or use an account without it", what, refused.Description)
		}
	}
	if mayPass(err, 0) {
		return fmt.Errorf("%s: JetStream has not answered within %s: does the cluster have a majority of its servers?", what, initTimeout)
	}
	return explainJetStream(what, err)
}
