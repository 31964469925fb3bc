// Package crash kills the process at a named point, so that a test can show what holds there. In an ordinary build a
// point is an empty function, which the compiler removes; a build with the tag crashpoints has the ones that kill.
//
// docs/crash-points.md says of each point what has happened there and what must hold.
package crash

// Points are the names of all points.
var Points = []string{
	"publisher.sent",
	"consumer.received",
	"consumer.retried",
	"consumer.dead-lettered",
	"rpc.called",
	"rpc.replied",
	"relay.taken",
	"relay.published",
	"order.claimed",
	"order.checked",
	"order.uncommitted",
	"order.stored",
	"order.cancelled",
	"inventory.uncommitted",
	"inventory.held",
	"inventory.settled",
	"inventory.released",
	"logging.inserted",
	"logging.letter-stored",
	"logging.redriven",
	"logging.resent",
}
