package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	journalStream = "PGEDGE"
	receiptStream = "PGEDGE_RECEIPTS"

	nodePrefix      = "pgedge.node."
	receiptPrefix   = "pgedge.receipt."
	reinstatePrefix = "pgedge.reinstate."
	rejectedSubject = "pgedge.rejected"

	// receiptRetention is thirteen months: a year of evidence is still there when the year's audit looks for it.
	receiptRetention = 396 * 24 * time.Hour
	// receiptMaxBytes keeps evidence from filling the disk that the journal needs; the oldest goes first. At one
	// kilobyte each these are four million receipts.
	receiptMaxBytes = 4 << 30
	// duplicateWindow is how long a publisher may retry with the same message id without storing the fact twice.
	duplicateWindow = 5 * time.Second
)

// fastSubjects are the verbs that cut before they have a place in the journal.
var fastSubjects = []string{"pgedge.revoke.>", "pgedge.kill.>", "pgedge.suspend.>"}

// journalConfig is the journal: the last message of each subject is the state, so it compacts itself.
func journalConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              journalStream,
		Description:       "pgedge: revocations and presence",
		Subjects:          append(slices.Clone(fastSubjects), "pgedge.reinstate.>", "pgedge.node.*.*"),
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxConsumers:      -1,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxMsgsPerSubject: 1,
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Duplicates:        duplicateWindow,
		DenyDelete:        true,
	}
}

// receiptConfig is the evidence: one message per revocation, node and page.
func receiptConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              receiptStream,
		Description:       "pgedge: receipts",
		Subjects:          []string{receiptPrefix + ">"},
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxConsumers:      -1,
		MaxMsgs:           -1,
		MaxBytes:          receiptMaxBytes,
		MaxAge:            receiptRetention,
		MaxMsgsPerSubject: 1,
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		Duplicates:        duplicateWindow,
		DenyDelete:        true,
	}
}

// createStreams makes the two streams where they are missing. Only embedded single-node mode calls it: a node that
// created a journal it does not find could end up with one of its own, cut off from everybody else's revocations.
func createStreams(ctx context.Context, js jetstream.JetStream) error {
	for _, want := range []jetstream.StreamConfig{journalConfig(1), receiptConfig(1)} {
		_, err := js.Stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			_, err = js.CreateStream(ctx, want)
		}
		if err != nil {
			return fmt.Errorf("cannot create stream %s: %w", want.Name, err)
		}
	}
	return nil
}

// StreamsError says that the streams are not as a node needs them, and what a person has to do about it.
type StreamsError struct {
	Problem string
	Fix     string
	// Missing says that a stream does not exist at all.
	Missing bool
}

func (e *StreamsError) Error() string { return e.Problem + "; " + e.Fix }

// checkStreams refuses streams that are missing or would not keep what they are given, with a *StreamsError; any other
// error says that they could not be looked at. It returns the identity of the journal. initCommand is what creates them.
func checkStreams(ctx context.Context, js jetstream.JetStream, replicas int, initCommand string) (streamID string, err error) {
	for _, want := range []jetstream.StreamConfig{journalConfig(replicas), receiptConfig(replicas)} {
		s, err := js.Stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return "", streamMissing(want.Name, initCommand)
		}
		if err != nil {
			return "", explainJetStream(fmt.Sprintf("cannot read stream %s", want.Name), err)
		}
		info := s.CachedInfo()
		if diff := streamDifferences(info.Config, want); len(diff) > 0 {
			return "", streamDiffers(want, diff)
		}
		if want.Name == journalStream {
			account, err := js.AccountInfo(ctx)
			if err != nil {
				return "", explainJetStream("cannot read JetStream account", err)
			}
			streamID = streamIdentity(info, account.Domain)
		}
	}
	return streamID, nil
}

func streamMissing(name, initCommand string) *StreamsError {
	return &StreamsError{
		Problem: fmt.Sprintf("stream %s does not exist on this NATS, and a node never creates it there by itself", name),
		Fix:     "create it once, with the rights of an operator: " + initCommand,
		Missing: true,
	}
}

func streamDiffers(want jetstream.StreamConfig, diff []string) *StreamsError {
	fix := "set it back with nats stream edit " + want.Name
	if len(diff) == 1 && strings.HasPrefix(diff[0], "num_replicas") {
		fix = fmt.Sprintf("run nats stream edit %s --replicas %d, or ask for fewer copies (cluster.replicas)", want.Name, want.Replicas)
	}
	return &StreamsError{
		Problem: fmt.Sprintf("stream %s is not set up as pgedge needs it: %s", want.Name, strings.Join(diff, "; ")),
		Fix:     fix,
	}
}

// explainJetStream says what the bare words of JetStream mean.
func explainJetStream(what string, err error) error {
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return fmt.Errorf("%s: JetStream is off for this user's account: enable it in the account (jetstream: enabled)", what)
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%s: JetStream is off on this NATS server, or has just begun to start: a jetstream {} block in its configuration turns it on", what)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: no answer in time: its servers are electing a leader, or too few of them can reach each other: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// streamIdentity tells one journal from another of the same name: restored, recreated, or in another domain.
func streamIdentity(info *jetstream.StreamInfo, domain string) string {
	return fmt.Sprintf("%s@%s/%d", info.Config.Name, domain, info.Created.UnixNano())
}

// streamDifferences lists what keeps a stream from being used, in the words of the NATS tools. More replicas than
// asked for are fine, and so are settings that lose nothing.
func streamDifferences(got, want jetstream.StreamConfig) []string {
	var diff []string
	check := func(name string, got, want any) {
		if got != want {
			diff = append(diff, fmt.Sprintf("%s is %v, must be %v", name, got, want))
		}
	}
	gotSubjects, wantSubjects := slices.Sorted(slices.Values(got.Subjects)), slices.Sorted(slices.Values(want.Subjects))
	check("subjects", strings.Join(gotSubjects, ","), strings.Join(wantSubjects, ","))
	check("retention", got.Retention, want.Retention)
	check("storage", got.Storage, want.Storage)
	check("max_msgs_per_subject", got.MaxMsgsPerSubject, want.MaxMsgsPerSubject)
	check("discard", got.Discard, want.Discard)
	check("deny_delete", got.DenyDelete, want.DenyDelete)
	check("duplicate_window", got.Duplicates, want.Duplicates)
	check("allow_rollup_hdrs", got.AllowRollup, false)
	check("allow_msg_ttl", got.AllowMsgTTL, false)
	check("allow_msg_counter", got.AllowMsgCounter, false)
	check("allow_msg_schedules", got.AllowMsgSchedules, false)
	// A direct get answers with the stored payload on a subject of the asker's choice, which could be a verb's.
	check("allow_direct", got.AllowDirect, false)
	check("no_ack", got.NoAck, false)
	check("sealed", got.Sealed, false)
	check("mirror", got.Mirror != nil, false)
	check("sources", len(got.Sources) > 0, false)
	check("subject_transform", got.SubjectTransform != nil, false)
	check("persist_mode", got.PersistMode, want.PersistMode)
	unlimited := func(name string, limit int64) {
		if limit > 0 {
			diff = append(diff, fmt.Sprintf("%s is %d, must be unlimited", name, limit))
		}
	}
	unlimited("max_msgs", got.MaxMsgs)
	unlimited("max_msg_size", int64(got.MaxMsgSize))
	if want.MaxBytes <= 0 {
		unlimited("max_bytes", got.MaxBytes)
	}
	if got.MaxAge != 0 && (want.MaxAge == 0 || got.MaxAge < want.MaxAge) {
		diff = append(diff, fmt.Sprintf("max_age is %s, must be %s", got.MaxAge, orUnlimited(want.MaxAge)))
	}
	if got.Replicas < want.Replicas {
		diff = append(diff, fmt.Sprintf("num_replicas is %d, must be at least %d", got.Replicas, want.Replicas))
	}
	return diff
}

func orUnlimited(d time.Duration) string {
	if d == 0 {
		return "unlimited"
	}
	return "at least " + d.String()
}
