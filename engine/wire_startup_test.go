package engine

import (
	"fmt"
	"strings"
	"testing"

	"pgedge/codec"
	"pgedge/internal/pgtest"
)

// TestWireFirstBytesAreAnsweredAsPostgresWithoutTLSAnswersThem covers what may come before a startup packet.
func TestWireFirstBytesAreAnsweredAsPostgresWithoutTLSAnswersThem(t *testing.T) {
	ssl, gss := packet(sslRequest, nil), packet(gssRequest, nil)
	login := startup("user", "trustuser", "database", pgtest.Database)
	asks := func(b []byte) step { return step{send: b, raw: true} }
	logsIn := step{send: login, await: 'Z'}
	compare(t, "unix", fmt.Sprintf("%s/.s.PGSQL.%d", server.SocketDir, server.Port), []script{
		{name: "nothing at all", steps: []step{{finish: true}}},
		{name: "SSLRequest, then a login", steps: []step{asks(ssl), logsIn}},
		{name: "GSSENCRequest, then a login", steps: []step{asks(gss), logsIn}},
		{name: "SSLRequest, GSSENCRequest, then a login", steps: []step{asks(ssl), asks(gss), logsIn}},
		{name: "GSSENCRequest, SSLRequest, then a login", steps: []step{asks(gss), asks(ssl), logsIn}},
		{name: "SSLRequest twice", steps: []step{asks(ssl), {send: ssl, gone: true}}},
		{name: "GSSENCRequest twice", steps: []step{asks(gss), {send: gss, gone: true}}},
		{name: "SSLRequest, GSSENCRequest, SSLRequest", steps: []step{asks(ssl), asks(gss), {send: ssl, gone: true}}},
		{name: "SSLRequest with a login behind it", steps: []step{asks(join(ssl, login)), {gone: true}}},
		{name: "GSSENCRequest with a login behind it", steps: []step{asks(join(gss, login)), {gone: true}}},
		{name: "a longer SSLRequest", steps: []step{asks(packet(sslRequest, []byte("more"))), logsIn}},
		{name: "SSLRequest, then the end", steps: []step{asks(ssl), {finish: true}}},
		{name: "SSLRequest, then a cancel request", steps: []step{asks(ssl), {send: packet(cancelCode, body(int32(1), int32(1))), gone: true}}},
		{name: "direct TLS", steps: []step{{send: []byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"), gone: true}}},
		{name: "HTTP", steps: []step{{send: []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), gone: true}}},
		{name: "a line of text", steps: []step{{send: []byte("hello\n"), gone: true}}},
		{name: "a cancel request that knows nothing", steps: []step{{send: packet(cancelCode, body(int32(99), int32(1))), gone: true}}},
		{name: "a cancel request that is too short", steps: []step{{send: packet(cancelCode, body(int32(99))), gone: true}}},
		{name: "a cancel request of a bare code", steps: []step{{send: packet(cancelCode, nil), gone: true}}},
		{name: "a cancel request that is too long", steps: []step{{send: packet(cancelCode, make([]byte, 300)), gone: true}}},
		{name: "a login in pieces of one byte", steps: append(inBytes(login), step{await: 'Z'})},
	}, map[string]accepted{
		"SSLRequest twice":                      {"byte 'N' E(FATAL 0A000 unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2) end", otherVersions},
		"GSSENCRequest twice":                   {"byte 'N' E(FATAL 0A000 unsupported frontend protocol 1234.5680: server supports 3.0 to 3.2) end", otherVersions},
		"SSLRequest, GSSENCRequest, SSLRequest": {"byte 'N' byte 'N' E(FATAL 0A000 unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2) end", otherVersions},
	})
}

const otherVersions = "the text names the versions that the node speaks, and this server speaks fewer"

func inBytes(b []byte) []step {
	var steps []step
	for i := range b {
		steps = append(steps, step{send: b[i : i+1]})
	}
	return steps
}

// TestWireStartupPacketsAreAnsweredAsPostgresAnswersThem covers lengths, layouts, names, options and versions.
func TestWireStartupPacketsAreAnsweredAsPostgresAnswersThem(t *testing.T) {
	refused := func(b []byte) []step { return []step{{send: b, gone: true}} }
	welcome := func(b []byte) []step { return []step{{send: b, await: 'Z'}} }
	user := []string{"user", "trustuser", "database", pgtest.Database}
	with := func(pairs ...string) []byte { return startup(append(append([]string{}, user...), pairs...)...) }
	good := with()
	length := func(n uint32, rest []byte) []byte {
		return join([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, rest)
	}
	filled := func(total int) []byte { // a legal packet of a given length
		base := len(with("application_name", ""))
		return with("application_name", strings.Repeat("x", total-base))
	}
	compare(t, "tcp", server.Addr(), []script{
		{name: "length 0", steps: refused(length(0, nil))},
		{name: "length 3", steps: refused(length(3, nil))},
		{name: "length 4", steps: refused(length(4, nil))},
		{name: "length 7", steps: refused(length(7, good[4:]))},
		{name: "length 8", steps: refused(packet(version30, nil))},
		{name: "length 10005", steps: refused(length(10005, make([]byte, 10001)))},
		{name: "length 2^31", steps: refused(length(1<<31, good[4:]))},
		{name: "length 2^32-1", steps: refused(length(1<<32-1, good[4:]))},
		{name: "length 10004, the longest", steps: welcome(filled(10004))},
		{name: "half a packet", steps: []step{{send: good[:20], finish: true}}},
		{name: "half a length", steps: []step{{send: good[:2], finish: true}}},
		{name: "no terminator", steps: refused(packet(version30, []byte("user\x00trustuser\x00")))},
		{name: "a key without value", steps: refused(packet(version30, []byte("user\x00trustuser\x00database\x00")))},
		{name: "bytes behind the terminator", steps: refused(packet(version30, []byte("user\x00trustuser\x00\x00database\x00app\x00\x00")))},
		{name: "no parameters", steps: refused(startup())},
		{name: "no user", steps: refused(startup("database", pgtest.Database))},
		{name: "an empty user", steps: refused(startup("user", "", "database", pgtest.Database))},
		{name: "two users, of which the last counts", steps: welcome(startup("user", "nobody", "user", "trustuser", "database", pgtest.Database))},
		{name: "two databases, of which the last counts", steps: welcome(with("database", "nosuch", "database", pgtest.Database))},
		{name: "no database means that of the user", steps: refused(startup("user", "trustuser"))},
		{name: "an empty database means that of the user", steps: refused(startup("user", "trustuser", "database", ""))},
		{name: "an unknown database", steps: refused(startup("user", "trustuser", "database", "nosuch"))},
		{name: "a database name beyond 63 bytes", steps: refused(startup("user", "trustuser", "database", strings.Repeat("ü", 40)))},
		{name: "settings", steps: []step{{send: with("work_mem", "1MB", "options", `-c geqo=off --statement-timeout=77 -c DateStyle=SQL,\ DMY`, "application_name", "näme"), await: 'Z'},
			{send: query("SHOW work_mem; SHOW geqo; SHOW statement_timeout; SHOW DateStyle; SHOW application_name"), await: 'Z'}}},
		{name: "an unknown setting", steps: refused(with("no_such_setting", "1"))},
		{name: "a setting with a bad value", steps: refused(with("work_mem", "much"))},
		{name: "an unknown encoding", steps: refused(with("client_encoding", "KLINGON"))},
		{name: "options with an empty name", steps: refused(with("options", "-c="))},
		{name: "options that are none", steps: refused(with("options", "--nonsense"))},
		{name: "options with a backslash at the end", steps: welcome(with("options", `-c geqo=off\`))},
		{name: "replication that is no boolean", steps: refused(with("replication", "perhaps"))},
		{name: "replication off", steps: welcome(with("replication", "off"))},
		{name: "protocol options", steps: welcome(with("_pq_.test_protocol_negotiation", "", "_pq_.other", "1"))},
		{name: "protocol 3.2", steps: welcome(startupVersion(version30+2, append(user, "")[:4]...))},
		{name: "protocol 3.9999 with an option", steps: welcome(startupVersion(version30+9999, append(user, "_pq_.test_protocol_negotiation", "")...))},
		{name: "protocol 3.0 and a million", steps: welcome(startupVersion(version30+0xffff, user...))},
		{name: "protocol 4.0", steps: refused(startupVersion(4<<16, user...))},
		{name: "protocol 1234.0", steps: refused(startupVersion(1234<<16, user...))},
		{name: "protocol 2.0", steps: refused(packet(2<<16, make([]byte, 288))), text: true},
		{name: "protocol 1.0", steps: refused(packet(1<<16, make([]byte, 288))), text: true},
		{name: "protocol 0.0", steps: refused(packet(0, make([]byte, 288))), text: true},
	}, map[string]accepted{
		"protocol 4.0":    {"E(FATAL 0A000 unsupported frontend protocol 4.0: server supports 3.0 to 3.2) end", otherVersions},
		"protocol 1234.0": {"E(FATAL 0A000 unsupported frontend protocol 1234.0: server supports 3.0 to 3.2) end", otherVersions},
		"protocol 2.0":    {`"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\x00" end`, otherVersions},
		"protocol 1.0":    {`"EFATAL:  unsupported frontend protocol 1.0: server supports 3.0 to 3.2\n\x00" end`, otherVersions},
		"protocol 0.0": {`"E\x00\x00\x00YSFATAL\x00VFATAL\x00C0A000\x00Munsupported frontend protocol 0.0: server supports 3.0 to 3.2\x00\x00" end`,
			otherVersions + "; file and line of Postgres's source are its own"},
	})
}

// TestWireLoginsAreAnsweredAsPostgresAnswersThem covers what may come in place of a password.
func TestWireLoginsAreAnsweredAsPostgresAnswersThem(t *testing.T) {
	hello := func(user string) step {
		return step{send: startup("user", user, "database", pgtest.Database), await: 'R'}
	}
	then := func(user string, b []byte) []step { return []step{hello(user), {send: b, gone: true}} }
	first := m('p', "SCRAM-SHA-256", int32(32), []byte("n,,n=,r=abcdefghijklmnopqrstuvwx"))
	compare(t, "tcp", server.Addr(), []script{
		{name: "SASL: a query instead", steps: then("alice", query("SELECT 1"))},
		{name: "SASL: a second startup packet", steps: then("alice", startup("user", "trustuser", "database", pgtest.Database))},
		{name: "SASL: an oversize message", steps: then("alice", lying('p', codec.MaxAuthMessageLength+1, "x"))},
		{name: "SASL: a huge message", steps: then("alice", lying('p', 1<<31, "x"))},
		{name: "SASL: a length of 3", steps: then("alice", lying('p', 3, "xxx"))},
		{name: "SASL: goodbye", steps: then("alice", goodbye)},
		{name: "SASL: the end", steps: []step{hello("alice"), {finish: true}}},
		{name: "SASL: the end inside the answer", steps: []step{hello("alice"), {send: first[:9], finish: true}}},
		{name: "SASL: an unknown mechanism", steps: then("alice", m('p', "SCRAM-MD4", int32(-1)))},
		{name: "SASL: channel binding", steps: then("alice", m('p', "SCRAM-SHA-256-PLUS", int32(8), []byte("p=x,,n=,")))},
		{name: "SASL: not a word of it", steps: then("alice", m('p', []byte{1, 2, 3}))},
		{name: "SASL: not SCRAM", steps: then("alice", m('p', "SCRAM-SHA-256", int32(3), []byte("abc")))},
		{name: "SASL: an empty answer", steps: then("alice", m('p'))},
		{name: "SASL: nonsense at the second step", steps: []step{hello("alice"), {send: first, await: 'R'}, {send: m('p', []byte("c=biws,r=x,p=y")), gone: true}}},
		{name: "SASL: a startup packet at the second step", steps: []step{hello("alice"), {send: first, await: 'R'},
			{send: startup("user", "trustuser", "database", pgtest.Database), gone: true}}},
		{name: "SASL: the end at the second step", steps: []step{hello("alice"), {send: first, await: 'R'}, {finish: true}}},
		{name: "SASL: an unknown role is asked like any other", steps: []step{hello("nobody"), {send: first, await: 'R'}, {send: m('p', []byte("c=biws,r=x,p=y")), gone: true}}},
		{name: "password: right", steps: []step{hello("clearuser"), {send: m('p', pgtest.Password("clearuser")), await: 'Z'}}},
		{name: "password: right, with a query behind it", steps: []step{hello("clearuser"),
			{send: join(m('p', pgtest.Password("clearuser")), query("SELECT 17")), await: 'Z'}, {await: 'Z'}}},
		{name: "password: wrong", steps: then("clearuser", m('p', "wrong"))},
		{name: "password: wrong, with a query behind it", steps: then("clearuser", join(m('p', "wrong"), query("SELECT 17")))},
		{name: "password: empty", steps: then("clearuser", m('p', ""))},
		{name: "password: no terminator", steps: then("clearuser", m('p', []byte("secret")))},
		{name: "password: a NUL in it", steps: then("clearuser", m('p', "a\x00b"))},
		{name: "password: the longest", steps: then("clearuser", m('p', strings.Repeat("x", codec.MaxAuthMessageLength-5)))},
		{name: "password: too long", steps: then("clearuser", lying('p', codec.MaxAuthMessageLength+1, "x"))},
		{name: "password: Sync instead", steps: then("clearuser", syncMsg)},
		{name: "password: goodbye", steps: then("clearuser", goodbye)},
		{name: "password: a second startup packet", steps: then("clearuser", startup("user", "trustuser", "database", pgtest.Database))},
		{name: "password: right, but no such database", steps: []step{{send: startup("user", "clearuser", "database", "nosuch"), await: 'R'},
			{send: m('p', pgtest.Password("clearuser")), gone: true}}},
		{name: "md5: wrong", steps: then("md5user", m('p', "md5d41d8cd98f00b204e9800998ecf8427e"))},
		{name: "md5: the end", steps: []step{hello("md5user"), {finish: true}}},
		{name: "trust: the end at once", steps: []step{{send: startup("user", "trustuser", "database", pgtest.Database), finish: true}}},
		{name: "trust: queries behind the startup packet", steps: []step{{send: join(startup("user", "trustuser", "database", pgtest.Database),
			query("SELECT 1"), query("SELECT 2")), await: 'Z'}, {await: 'Z'}, {await: 'Z'}}},
		{name: "trust: a query and goodbye behind the startup packet", steps: []step{{send: join(startup("user", "trustuser", "database", pgtest.Database),
			query("SELECT 1"), goodbye), gone: true}}},
		{name: "trust: more than a read buffer behind the startup packet", steps: []step{{send: join(startup("user", "trustuser", "database", pgtest.Database),
			query("SELECT length('"+strings.Repeat("x", 200_000)+"')")), await: 'Z'}, {await: 'Z'}}},
	}, map[string]accepted{
		"SASL: an oversize message":       {"R(10) E(FATAL 08P01 protocol violation) end", badLength},
		"SASL: a huge message":            {"R(10) E(FATAL 08P01 protocol violation) end", badLength},
		"SASL: a length of 3":             {"R(10) E(FATAL 08P01 protocol violation) end", badLength},
		"password: too long":              {"R(3) E(FATAL 08P01 protocol violation) end", badLength},
		"SASL: goodbye":                   {"R(10) end", "a client that says goodbye violates nothing and reads nothing"},
		"password: goodbye":               {"R(3) end", "a client that says goodbye violates nothing and reads nothing"},
		"SASL: the end inside the answer": {"R(10) end", "half an answer is not handed on, so the server has nothing to refuse, and the client has gone"},
	})
}

const badLength = "a length out of bounds is refused on its header and not handed on; Postgres calls it a wrong password, or says nothing"
