// Package messaging carries the contracts' messages over RabbitMQ.
//
// A Connection is supervised: whatever happens to it, a fresh one replaces it, and what used the old one starts over
// with fresh channels. A Publisher publishes with confirms. A Consumer hands typed batches to handlers and settles
// them by what the handlers return. RPCClient and RPCServer put gRPC's generated stubs on the broker.
//
// Who has published a message is the broker's word: what comes from a user who may not publish it is a dead letter, see
// identity.go.
//
// What is promised: Publish and Send return nil only when the broker has every message on disk in every queue it
// belongs to; after an error a message may or may not have been published, and is published again under the same
// message id. A Consumer acknowledges a message only when its handler has succeeded or when the message has been
// published to a retry queue or to the dead letters. So messages are delivered at least once, and handlers make that
// exactly one effect by keeping the ids they have handled (package outbox).
package messaging
