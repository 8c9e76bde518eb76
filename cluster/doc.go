// Package cluster carries pgedge's revocation protocol over NATS.
//
// On a node it runs the NATS server (or connects to one), follows the journal, listens on the fast path, hands
// every event to the pure state machine of package revoke and executes the commands that come back. For the
// command line it publishes facts, proves that they are stored, and collects the receipts that say what became
// of them.
//
// The life of a node, one file per step:
//
//	config.go     what a node is told, checked
//	statedir.go   the state directory: lock, boot record, nats-url
//	embedded.go   the NATS server in the process
//	streams.go    the two streams, created or checked
//	conn.go       connection options shared by nodes and clients
//	follower.go   an ordered consumer that starts over at once at any doubt
//	start.go      the order in which all of this begins
//	previous.go   what earlier runs left behind, and who else uses the node id
//	node.go       what others see of a node, and how it ends
//	actor.go      the one owner of the state machine
//	store.go      facts that the node has to store itself
//	heartbeat.go  presence, and the proof of freshness
//	receipts.go   evidence on its way to the receipt stream
//	service.go    fleet queries
//	repeats.go    what a log need not say again
//
// and of a client: client.go, view.go, inbox.go, publish.go, await.go, fleet.go, evidence.go.
package cluster
