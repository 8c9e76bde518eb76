package engine

import (
	"fmt"
	"strings"
	"testing"

	"pgedge/internal/pgtest"
)

// step is one move of a scripted client: it sends, then waits for something of the server's.
type step struct {
	send   []byte
	raw    bool // one byte that is no message comes back
	await  byte // a message of this type comes back
	gone   bool // the server ends the connection; what it still says is taken down
	finish bool // the client ends its half of the stream
}

// script is a client that talks to Postgres directly and through the node. A script that does not say how it ends
// says goodbye.
type script struct {
	name  string
	login string // trust role that is logged in first; "" for a script that begins at the first byte
	steps []step
	table string // a table T is made with this definition before
	check string // and this is asked of it afterwards
	lossy string // why answers may be lost on the way through the node; only the end and what was done are compared
	text  bool   // what comes back is no message but the form of protocol 2
}

// accepted are the differences that have been reviewed: what comes back through the node, and why that is right.
// A difference that is gone must be taken out.
type accepted struct {
	through string
	because string
}

// compare runs scripts on both ways. network and direct say how Postgres is reached directly: over its unix socket it
// has neither TLS nor GSSAPI to offer, as the node has not.
func compare(t *testing.T, network, direct string, scripts []script, differences map[string]accepted) {
	n := through(t, server.Addr(), nil)
	names := make(map[string]bool)
	setUp := "DROP SCHEMA IF EXISTS wire CASCADE; CREATE SCHEMA wire; GRANT ALL ON SCHEMA wire TO PUBLIC;"
	for i, s := range scripts {
		if names[s.name] {
			t.Fatalf("two scripts are called %q", s.name)
		}
		names[s.name] = true
		for _, table := range tablesOf(i) {
			if s.table != "" {
				setUp += "CREATE TABLE " + table + s.table + "; GRANT ALL ON " + table + " TO PUBLIC;"
			}
		}
	}
	for name := range differences {
		if !names[name] {
			t.Errorf("the accepted difference %q belongs to no script", name)
		}
	}
	server.Exec(t, setUp)
	heard := make([][2]string, len(scripts))
	t.Run("run", func(t *testing.T) {
		for i, s := range scripts {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				tables := tablesOf(i)
				heard[i] = [2]string{runScript(t, network, direct, s, tables[0]), runScript(t, "tcp", n.addr, s, tables[1])}
			})
		}
	})
	// What a script left behind is looked at when all its backends have ended.
	server.WaitInt(t, 0, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", application)
	admin := server.Conn(t)
	for i, s := range scripts {
		t.Run(s.name, func(t *testing.T) {
			for side, table := range tablesOf(i) {
				if s.check != "" {
					var left string
					if err := admin.QueryRow(bounded(t), string(forTable([]byte(s.check), table))).Scan(&left); err != nil {
						t.Fatal(err)
					}
					heard[i][side] += " | " + left
				}
			}
			want, got := heard[i][0], heard[i][1]
			a, known := differences[s.name]
			switch {
			case known && got == want:
				t.Errorf("the accepted difference is gone; take it out\n%s", got)
			case known && got != a.through:
				t.Errorf("an accepted difference has changed\ndirect  %s\nthrough %s\nlisted  %s", want, got, a.through)
			case !known && got != want:
				t.Errorf("Postgres and the node answer differently\ndirect  %s\nthrough %s", want, got)
			}
		})
	}
}

// application is the name of scripted sessions.
const application = "wire"

// tablesOf names the tables of a script: of the direct way, and of the way through the node.
func tablesOf(i int) [2]string {
	return [2]string{fmt.Sprintf("wire.direct%03d", i), fmt.Sprintf("wire.throug%03d", i)}
}

// runScript returns what came back in words.
func runScript(t *testing.T, network, addr string, s script, table string) string {
	t.Helper()
	c := dialPlain(t, network, addr)
	if s.login != "" {
		c.send(startup("user", s.login, "database", pgtest.Database, "application_name", application))
		c.until('Z')
	}
	out := playScript(t, c, s, table)
	c.Close()
	if s.lossy != "" {
		out = out[strings.LastIndexByte(out, ' ')+1:]
	}
	return strings.ReplaceAll(strings.ReplaceAll(out, table, "T"), table[len("wire."):], "T")
}

func playScript(t *testing.T, c *plainConn, s script, table string) string {
	t.Helper()
	var out []string
	take := func(f frame) { out = append(out, spell([]frame{f})) }
	for _, st := range s.steps {
		if len(st.send) > 0 {
			c.send(forTable(st.send, table))
		}
		if st.finish {
			c.closeWrite()
		}
		for st.await != 0 {
			f, err := c.next()
			if err != nil {
				return strings.Join(append(out, fmt.Sprintf("while waiting for %q: %v", st.await, err)), " ")
			}
			take(f)
			if f.typ == st.await {
				break
			}
		}
		if st.raw {
			b, err := c.raw()
			if err != nil {
				return strings.Join(append(out, "while waiting for a byte: "+err.Error()), " ")
			}
			out = append(out, fmt.Sprintf("byte %q", b))
		}
		if st.gone || st.finish {
			return strings.Join(append(out, ending(c, s.text, take)), " ")
		}
	}
	c.send(goodbye)
	return strings.Join(append(out, ending(c, s.text, take)), " ")
}

// ending reads to the end of the stream. FIN and RST are the same to it: which of them comes depends on how much of
// the input had been read.
func ending(c *plainConn, text bool, take func(frame)) string {
	if text {
		for {
			if err := c.fill(); err != nil {
				return fmt.Sprintf("%q end", c.got)
			}
		}
	}
	for {
		f, err := c.next()
		switch {
		case err == nil:
			take(f)
		case ended(err):
			return "end"
		case silent(err):
			return "still open"
		default:
			return err.Error()
		}
	}
}

// tab stands for the script's table.
const tab = "TABLE_T_____________"

// forTable puts the script's own table into its messages. Their length words were computed for tab, which is longer than
// any table's name, so the name is padded with blanks, which SQL does not mind.
func forTable(b []byte, table string) []byte {
	return []byte(strings.ReplaceAll(string(b), tab, table+strings.Repeat(" ", len(tab)-len(table))))
}
