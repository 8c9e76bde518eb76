package pgserver

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// TakeOver is pgconn's Hijack for those who then read from the socket themselves. Behind a write that has taken longer
// than 15 ms, as on a busy machine, pgconn has a goroutine that goes on reading, and would take the first bytes that
// the server sends from then on. It is gone when TakeOver returns, and no byte has been read beyond the server's first
// ReadyForQuery. The connection has no read deadline. After an error it is closed.
func TakeOver(pc *pgconn.PgConn) (*pgconn.HijackedConn, error) {
	h, err := pc.Hijack()
	if err != nil {
		return nil, fmt.Errorf("cannot take the connection over: %w", err)
	}
	// A read with a deadline in the past returns once that goroutine's has.
	err = h.Conn.SetReadDeadline(time.Unix(1, 0))
	if err == nil {
		var timeout net.Error
		switch m, rerr := h.Frontend.Receive(); {
		case rerr == nil:
			err = fmt.Errorf("the server has sent %T behind the login", m)
		case !errors.As(rerr, &timeout) || !timeout.Timeout():
			err = rerr
		case h.Frontend.ReadBufferLen() != 0:
			err = fmt.Errorf("%d bytes behind the login", h.Frontend.ReadBufferLen())
		default:
			err = h.Conn.SetReadDeadline(time.Time{})
		}
	}
	if err != nil {
		h.Conn.Close()
		return nil, fmt.Errorf("cannot take the connection over: %w", err)
	}
	return h, nil
}
