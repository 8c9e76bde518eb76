package backend

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// result is what a statement returns.
type result struct {
	columns []column
	rows    [][]string // as text
	tag     string     // of CommandComplete; "" for a SELECT
}

type column struct {
	name string
	oid  uint32
}

// Type ids of Postgres.
const (
	oidInt4 = 23
	oidText = 25
	oidVoid = 2278
)

// simple carries out a simple query of one statement. Several at once it does not know.
func (c *conn) simple(sql string) error {
	sql = strings.TrimSuffix(strings.TrimSpace(sql), ";")
	if sql == "" {
		c.message('I')
		return nil
	}
	r, err := c.run(sql, nil)
	c.skipping = false // the query is the whole batch
	if r == nil || err != nil {
		return err
	}
	if len(r.columns) > 0 {
		c.rowDescription(r.columns, false)
	}
	c.answer(r, false)
	return nil
}

func (c *conn) bind(f *fields) {
	name, statement := f.text(), f.text()
	sql, ok := c.statements[statement]
	if !ok {
		c.refuse(sqlNoSuchStatement, fmt.Sprintf("prepared statement %q does not exist", statement))
		return
	}
	formats := make([]int, max(0, f.int16()))
	for i := range formats {
		formats[i] = f.int16()
	}
	p := portal{sql: sql}
	for i := range max(0, f.int16()) {
		n := f.int32()
		if n < 0 {
			p.params = append(p.params, "")
			continue
		}
		value := string(f.take(n))
		if len(formats) == 1 && formats[0] == 1 || i < len(formats) && formats[i] == 1 {
			// All that it takes in binary are int4.
			if len(value) != 4 {
				c.refuse(sqlFeatureNotSupported, "the bench backend takes no binary parameters but int4")
				return
			}
			value = strconv.Itoa(int(int32(binary.BigEndian.Uint32([]byte(value)))))
		}
		p.params = append(p.params, value)
	}
	for range max(0, f.int16()) {
		p.binary = f.int16() == 1
	}
	if c.portals == nil {
		c.portals = make(map[string]portal)
	}
	c.portals[name] = p
	c.message('2')
}

// describe says what columns a statement returns, without running it.
func (c *conn) describe(what byte, name string) {
	p, ok := c.portals[name]
	if what == 'S' {
		p.sql, ok = c.statements[name]
		// As many parameters as the highest $n, all text.
		n := 0
		for n < 9 && strings.Contains(p.sql, "$"+strconv.Itoa(n+1)) {
			n++
		}
		body := binary.BigEndian.AppendUint16(nil, uint16(n))
		for range n {
			body = binary.BigEndian.AppendUint32(body, oidText)
		}
		c.message('t', body...)
	}
	if !ok {
		c.refuse(sqlNoSuchPortal, fmt.Sprintf("portal or statement %q does not exist", name))
		return
	}
	columns, known := columnsOf(p.sql)
	switch {
	case !known:
		c.dontKnow(p.sql)
	case len(columns) == 0:
		c.message('n')
	default:
		c.rowDescription(columns, p.binary)
	}
}

func (c *conn) execute(name string) error {
	p, ok := c.portals[name]
	if !ok {
		c.refuse(sqlNoSuchPortal, fmt.Sprintf("portal %q does not exist", name))
		return nil
	}
	r, err := c.run(p.sql, p.params)
	if r == nil || err != nil {
		c.skipping = true
		return err
	}
	c.answer(r, p.binary)
	return nil
}

// sleepName is what begins the one statement that takes time.
const sleepName = "select pg_sleep("

// discardAll is what PgBouncer sends before another client gets a session.
const discardAll = "discard all"

// columnsOf names the columns of a statement; none for one that returns no rows.
func columnsOf(sql string) ([]column, bool) {
	if q := findQuestion(sql); q != nil {
		return q.describe(), true
	}
	switch low := strings.ToLower(oneLine(sql)); {
	case transaction(low) != "" || strings.HasPrefix(low, "set ") || low == discardAll:
		return nil, true
	case strings.HasPrefix(low, sleepName):
		return []column{{"pg_sleep", oidVoid}}, true
	case number(low) != "":
		return []column{{"?column?", oidInt4}}, true
	}
	return nil, false
}

// number is n in SELECT n, "" for any other statement.
func number(low string) string {
	n, ok := strings.CutPrefix(strings.TrimSuffix(low, ";"), "select ")
	if _, err := strconv.ParseInt(n, 10, 32); !ok || err != nil {
		return ""
	}
	return n
}

// transaction is the command tag of a statement that begins or ends a transaction.
func transaction(low string) string {
	switch word, _, _ := strings.Cut(strings.TrimSuffix(low, ";"), " "); word {
	case "begin", "start":
		return "BEGIN"
	case "commit", "end":
		return "COMMIT"
	case "rollback", "abort":
		return "ROLLBACK"
	}
	return ""
}

// run carries out a statement. A nil result says that it has failed and the client was told. An error ends the session.
func (c *conn) run(sql string, params []string) (*result, error) {
	if q := findQuestion(sql); q != nil {
		if len(params) != q.params {
			c.refuse(sqlProtocolViolation, fmt.Sprintf("the statement takes %d parameters", q.params))
			return nil, nil
		}
		rows, err := q.answer(c, params)
		if err != nil {
			c.refuse(sqlFeatureNotSupported, err.Error())
			return nil, nil
		}
		return &result{columns: q.describe(), rows: rows}, nil
	}
	low := strings.ToLower(oneLine(sql))
	switch tag := transaction(low); {
	case tag == "BEGIN":
		c.status = 'T'
		return &result{tag: tag}, nil
	case tag != "":
		if c.status == 'E' {
			tag = "ROLLBACK"
		}
		c.status = 'I'
		return &result{tag: tag}, nil
	}
	switch {
	case strings.HasPrefix(low, "set "):
		return &result{tag: "SET"}, nil
	case low == discardAll:
		clear(c.statements)
		clear(c.portals)
		return &result{tag: "DISCARD ALL"}, nil
	case strings.HasPrefix(low, sleepName):
		seconds, err := strconv.ParseFloat(strings.TrimSuffix(low[len(sleepName):], ")"), 64)
		if err != nil || seconds < 0 || seconds > 3600 {
			break
		}
		slept, err := c.rest(time.Duration(seconds * float64(time.Second)))
		if err != nil {
			return nil, err
		}
		if !slept {
			c.refuse(sqlQueryCanceled, "canceling statement due to user request")
			return nil, nil
		}
		return &result{columns: []column{{"pg_sleep", oidVoid}}, rows: [][]string{{""}}}, nil
	case number(low) != "":
		return &result{columns: []column{{"?column?", oidInt4}}, rows: [][]string{{number(low)}}}, nil
	}
	c.dontKnow(sql)
	return nil, nil
}

func (c *conn) dontKnow(sql string) {
	c.srv.unknown(sql)
	c.refuse(sqlFeatureNotSupported, "the bench backend does not know this statement: "+oneLine(sql))
}

// refuse fails the statement at hand.
func (c *conn) refuse(code, text string) {
	c.fail("ERROR", code, text)
	if c.status == 'T' {
		c.status = 'E'
	}
	c.skipping = true
}

func (c *conn) rowDescription(columns []column, binaryFormat bool) {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(columns)))
	for _, col := range columns {
		body = append(append(body, col.name...), 0)
		body = append(body, 0, 0, 0, 0, 0, 0) // of no table
		body = binary.BigEndian.AppendUint32(body, col.oid)
		size := int16(-1)
		if col.oid == oidInt4 {
			size = 4
		}
		body = binary.BigEndian.AppendUint16(body, uint16(size))
		body = append(body, 0xff, 0xff, 0xff, 0xff) // no modifier
		format := uint16(0)
		if binaryFormat {
			format = 1
		}
		body = binary.BigEndian.AppendUint16(body, format)
	}
	c.message('T', body...)
}

func (c *conn) answer(r *result, binaryFormat bool) {
	for _, row := range r.rows {
		body := binary.BigEndian.AppendUint16(nil, uint16(len(row)))
		for i, value := range row {
			if binaryFormat && r.columns[i].oid == oidInt4 {
				n, _ := strconv.ParseInt(value, 10, 32) // number has parsed it already
				value = string(binary.BigEndian.AppendUint32(nil, uint32(n)))
			}
			body = binary.BigEndian.AppendUint32(body, uint32(len(value)))
			body = append(body, value...)
		}
		c.message('D', body...)
	}
	tag := r.tag
	if tag == "" {
		tag = "SELECT " + strconv.Itoa(len(r.rows))
	}
	c.message('C', []byte(tag+"\x00")...)
}
