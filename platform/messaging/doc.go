// Package messaging publishes and consumes the messages of the contracts over RabbitMQ, and makes gRPC calls over it.
//
// A Connection is supervised: when it breaks it is replaced, and everything that used it starts over with new channels. A
// Publisher publishes with confirms. A Consumer gives typed batches to handlers, and acknowledges, retries or dead-letters
// the messages as the handlers' errors say. RPCClient and RPCServer work with the stubs that protoc-gen-go-grpc generates.
//
// The broker vouches for who has published a message: one from a user who may not publish it becomes a dead letter, see
// identity.go.
//
// Guarantees: Publish and Send return nil only when the broker has every message on disk in every queue it is routed to;
// after an error a message may or may not have been published, and the caller publishes it again under the same message id.
// A Consumer acknowledges a message only when its handler has succeeded, or when it has published the message to a retry
// queue or to the dead letters. So messages are delivered at least once; handlers give each of them one effect by storing
// the ids that they have handled (package outbox).
package messaging
