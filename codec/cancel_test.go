package codec

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func TestCancelRequestsOfEverySecretSizeSurviveARoundTrip(t *testing.T) {
	for size := range MaxSecretLength + 2 {
		key := CancelKey{0xfffffffe, bytes.Repeat([]byte{0xa5}, size)}
		packet := AppendCancelRequest([]byte("before"), key)[len("before"):]
		if size == 0 || size > MaxSecretLength {
			if len(packet) > 0 {
				t.Errorf("a secret of %d bytes was sent", size)
			}
			continue
		}
		if size >= 4 && !bytes.Equal(packet, encode(t, &pgproto3.CancelRequest{ProcessID: key.PID, SecretKey: key.Secret})) {
			t.Errorf("a secret of %d bytes: differs from pgproto3", size)
		}
		body, err := StartupLength([4]byte(packet))
		if err != nil || body != len(packet)-4 {
			t.Errorf("length %d, %v", body, err)
		}
		if p, err := ParseStartup(packet[4:]); err != nil || p.Kind != PacketCancelRequest || !p.Cancel.Equal(key) {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

func TestCancelKeysAreEqualOnlyIfBothPartsAre(t *testing.T) {
	key := CancelKey{7, []byte("abcd")}
	for _, c := range []struct {
		other CancelKey
		equal bool
	}{
		{CancelKey{7, []byte("abcd")}, true},
		{CancelKey{8, []byte("abcd")}, false},
		{CancelKey{7, []byte("abce")}, false},
		{CancelKey{7, []byte("abc")}, false},
		{CancelKey{7, []byte("abcde")}, false},
		{CancelKey{}, false},
	} {
		if key.Equal(c.other) != c.equal || c.other.Equal(key) != c.equal {
			t.Errorf("%v", c.other)
		}
	}
}
