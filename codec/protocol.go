// Package codec reads and writes the Postgres wire protocol as bytes: message boundaries, startup packets,
// cancel keys, error responses. It has no sockets, no goroutines and no state beyond the values it hands out.
//
// Every decoder takes untrusted bytes: it checks a length before it uses it, never panics, and never keeps
// its input. Limits and answers are those of PostgreSQL 18.
package codec

// Direction says who sends the stream that a Scanner reads.
type Direction uint8

const (
	FromFrontend Direction = iota // client to Postgres
	FromBackend                   // Postgres to client
)

// headerLength is the type byte and the length word that begin every message after the startup packet.
const headerLength = 5

// lengthWord is the size in bytes of a message's length word, which counts itself but not the type byte.
const lengthWord = 4
