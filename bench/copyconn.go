package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"pgedge/internal/pgserver"
)

// copyConn is a client that copies and hardly costs anything itself: it looks at the headers of messages only. A driver
// would be the slowest part.
type copyConn struct {
	net  *net.TCPConn
	in   *bufio.Reader
	stop func() bool // of the context's hold on the connection
}

const (
	readBytes = 256 << 10 // a few system calls per MB
	// wakeBytes must be there before the client is woken up, which would otherwise happen for every 8 KiB that Postgres
	// sends and make the client the slowest part.
	wakeBytes = 128 << 10
	// copyPatience is the longest that a COPY may take, with the time that its client sleeps.
	copyPatience = 5 * time.Minute
)

// dialCopy logs in with a driver and takes the connection over. It is closed when ctx ends.
func dialCopy(ctx context.Context, t *target) (*copyConn, error) {
	cfg, err := pgconn.ParseConfig(fmt.Sprintf("postgres://trustuser@%s/app?sslmode=disable", t.addr()))
	if err != nil {
		return nil, err
	}
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	h, err := pgserver.TakeOver(conn)
	if err != nil {
		return nil, err
	}
	tcp, ok := h.Conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("a connection of type %T", h.Conn)
	}
	c := &copyConn{net: tcp, in: bufio.NewReaderSize(tcp, readBytes)}
	// An error in the middle of a COPY is too short to wake the client up.
	if err := tcp.SetDeadline(time.Now().Add(copyPatience)); err != nil {
		return nil, err
	}
	c.stop = context.AfterFunc(ctx, func() { tcp.Close() })
	return c, nil
}

func (c *copyConn) close() {
	c.stop()
	c.net.Write([]byte{'X', 0, 0, 0, 4})
	c.net.Close()
}

// wakeAt sets how many bytes have to have arrived before a read returns that finds none.
func (c *copyConn) wakeAt(bytes int) error {
	raw, err := c.net.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, bytes) })
	return errors.Join(err, set)
}

func (c *copyConn) query(sql string) error {
	msg := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(sql)+1))
	_, err := c.net.Write(append(append(msg, sql...), 0))
	return err
}

// next reads the header of a message; its body is still to be read.
func (c *copyConn) next() (kind byte, body int, err error) {
	header, err := c.in.Peek(5)
	if err != nil {
		return 0, 0, err
	}
	kind, length := header[0], binary.BigEndian.Uint32(header[1:])
	if length < 4 || length > 1<<30 {
		return 0, 0, fmt.Errorf("message %q of %d bytes", kind, length)
	}
	_, err = c.in.Discard(5)
	return kind, int(length) - 4, err
}

// expect reads a message that has to be of a kind, and returns its body. In its place the server may complain.
func (c *copyConn) expect(kind byte) ([]byte, error) {
	got, n, err := c.next()
	if err != nil {
		return nil, err
	}
	const bodyBytes = 64 << 10 // of a message that is no row
	if n > bodyBytes {
		return nil, fmt.Errorf("message %q of %d bytes", got, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, err
	}
	if got != kind {
		return nil, fmt.Errorf("the server sends %q where %q is due: %s", got, kind, bytes.ReplaceAll(body, []byte{0}, []byte{' '}))
	}
	return body, nil
}

// finish reads how a COPY has ended and compares the number of rows.
func (c *copyConn) finish(w copyWork) error {
	tag, err := c.expect('C')
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("COPY %d\x00", w.rows); string(tag) != want {
		return fmt.Errorf("%q in place of %q", tag, want)
	}
	_, err = c.expect('Z')
	return err
}

// copyOut reads everything and counts it. pause is called, when it is not nil, after the first rows.
func (c *copyConn) copyOut(w copyWork, pause func() error) error {
	if err := c.query(w.out()); err != nil {
		return err
	}
	if _, err := c.expect('H'); err != nil {
		return err
	}
	if err := c.wakeAt(wakeBytes); err != nil {
		return err
	}
	var total int64
	for waits := true; ; {
		// The end has fewer bytes than would wake the client up.
		if left := w.bytes() - total; waits && left < wakeBytes+readBytes {
			if err := c.wakeAt(1); err != nil {
				return err
			}
			waits = false
		}
		if kind, err := c.in.Peek(1); err != nil {
			return err
		} else if kind[0] != 'd' {
			break
		}
		_, n, err := c.next()
		if err != nil {
			return err
		}
		if _, err := c.in.Discard(n); err != nil {
			return err
		}
		total += int64(n)
		if pause != nil {
			if err := pause(); err != nil {
				return err
			}
			pause = nil
		}
	}
	if _, err := c.expect('c'); err != nil {
		return err
	}
	if total != w.bytes() {
		return fmt.Errorf("%d bytes have arrived of %d", total, w.bytes())
	}
	return c.finish(w)
}

// copyIn writes everything, in messages of about the size that libpq makes of them.
func (c *copyConn) copyIn(w copyWork) error {
	if err := c.query(copyIn); err != nil {
		return err
	}
	if _, err := c.expect('G'); err != nil {
		return err
	}
	row := binary.BigEndian.AppendUint16(nil, 1)
	row = binary.BigEndian.AppendUint32(row, uint32(w.width))
	row = append(row, bytes.Repeat([]byte{'x'}, w.width)...)
	const messageBytes = 8 << 10
	perMessage := max(1, messageBytes/len(row))
	message := copyData(bytes.Repeat(row, perMessage))
	out := bufio.NewWriterSize(c.net, 64<<10)
	header := append([]byte("PGCOPY\n\xff\r\n\x00"), make([]byte, 8)...)
	out.Write(copyData(header))
	for left := w.rows; left > 0; {
		if left >= perMessage {
			left -= perMessage
			out.Write(message)
			continue
		}
		out.Write(copyData(row))
		left--
	}
	out.Write(copyData([]byte{0xff, 0xff}))
	out.Write([]byte{'c', 0, 0, 0, 4})
	if err := out.Flush(); err != nil { // it keeps the first error
		// What the server has said before it hung up says more.
		if _, said := c.expect('C'); said != nil {
			err = errors.Join(err, said)
		}
		return err
	}
	return c.finish(w)
}

func copyData(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{'d'}, uint32(4+len(body))), body...)
}

// heapBytes is what pgedge's heap holds by its own account; NaN for others, who do not say.
func heapBytes(ctx context.Context, t *target) (float64, error) {
	if t.admin == "" {
		return math.NaN(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "go_memstats_heap_inuse_bytes "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, errors.Join(lines.Err(), errors.New("pgedge does not say what its heap holds"))
}
