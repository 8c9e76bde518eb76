package cluster

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// fakeMsg is a message of a consumer with just what a follower reads.
type fakeMsg struct {
	jetstream.Msg
	consumer, stream uint64
}

func (m fakeMsg) Subject() string      { return "pgedge.kill.all" }
func (m fakeMsg) Data() []byte         { return nil }
func (m fakeMsg) Headers() nats.Header { return nil }
func (m fakeMsg) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{Sequence: jetstream.SequencePair{Consumer: m.consumer, Stream: m.stream}, Timestamp: time.Now()}, nil
}

func TestFollowerStartsOverAtAGapAndDeliversNothingBehindIt(t *testing.T) {
	for _, tt := range []struct {
		name string
		msgs []fakeMsg
		want []uint64
		over bool
	}{
		{"in order", []fakeMsg{{consumer: 1, stream: 5}, {consumer: 2, stream: 9}}, []uint64{5, 9}, false},
		{"a gap", []fakeMsg{{consumer: 1, stream: 5}, {consumer: 3, stream: 9}, {consumer: 2, stream: 7}}, []uint64{5}, true},
		{"first one missing", []fakeMsg{{consumer: 2, stream: 5}}, nil, true},
		{"the stream goes back", []fakeMsg{{consumer: 1, stream: 5}, {consumer: 2, stream: 5}, {consumer: 3, stream: 6}}, []uint64{5}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []uint64
			f := &follower{doubt: make(chan string, 1), gen: 1, nextSeq: 1, message: func(d delivery) { got = append(got, d.Seq) }}
			for _, m := range tt.msgs {
				f.deliver(1, m)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("delivered %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Fatalf("delivered %v, want %v", got, tt.want)
				}
			}
			if over := len(f.doubt) > 0; over != tt.over {
				t.Errorf("starts over: %v, want %v", over, tt.over)
			}
		})
	}
}

func TestMessagesOfAnAbandonedConsumerAreIgnored(t *testing.T) {
	delivered := 0
	f := &follower{doubt: make(chan string, 1), gen: 1, nextSeq: 1, message: func(delivery) { delivered++ }}
	f.abandon()
	f.deliver(1, fakeMsg{consumer: 1, stream: 1})
	f.fail(1, nats.ErrNoResponders)
	if delivered != 0 || len(f.doubt) != 0 {
		t.Errorf("%d delivered, %d doubts", delivered, len(f.doubt))
	}
}
