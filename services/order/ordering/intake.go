package ordering

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"

	orderv1 "shop.example/gen/shop/order/v1"
	"shop.example/platform/outbox"
	"shop.example/platform/postgres"
)

// intake serves IntakeService, which the other services ask about orders on their way.
type intake struct {
	orderv1.UnimplementedIntakeServiceServer
	*Service
}

// FindKey is part of orderv1.IntakeServiceServer.
func (s intake) FindKey(ctx context.Context, req *orderv1.FindKeyRequest) (*orderv1.FindKeyResponse, error) {
	owners, err := keyOwners(ctx, s.db, postgres.ArrayOf(req.GetKeyHashes()))
	if err != nil {
		return nil, err
	}
	for _, hash := range req.GetKeyHashes() {
		i := slices.IndexFunc(owners, func(o keyOwner) bool { return slices.Equal(o.KeyHash, hash) })
		if i >= 0 {
			resp, err := s.find(ctx, owners[i].OrderID)
			if err == nil {
				resp.OrderId = owners[i].OrderID.String() // claimed, though not stored yet
			}
			return resp, err
		}
	}
	for _, former := range req.GetFormerOrderIds() {
		id, err := parseOrderID(former)
		if err != nil {
			return nil, err
		}
		if resp, err := s.find(ctx, id); err != nil || resp.Order != nil {
			return resp, err
		}
	}
	return &orderv1.FindKeyResponse{}, nil
}

// find reads an order; the response is empty if it is not stored.
func (s intake) find(ctx context.Context, id uuid.UUID) (*orderv1.FindKeyResponse, error) {
	o, err := get(ctx, s.db, id, false)
	switch {
	case errors.Is(err, errNotFound):
		return &orderv1.FindKeyResponse{}, nil
	case err != nil:
		return nil, err
	}
	return &orderv1.FindKeyResponse{OrderId: id.String(), Order: o.message()}, nil
}

const (
	defaultKeyRetention = 30 * 24 * time.Hour
	keyCleanInterval    = 10 * time.Minute
)

// checkKeyRetention returns how long an idempotency key stays its order's. It is an error if that is shorter than the
// time in which the order can come again.
func (cfg Config) checkKeyRetention() (time.Duration, error) {
	retention := cfg.KeyRetention
	if retention == 0 {
		retention = defaultKeyRetention
	}
	least, err := outbox.MinRetention(cfg.RedriveHorizon)
	if err != nil {
		return 0, err
	}
	if retention < least {
		return 0, fmt.Errorf("IDEMPOTENCY_KEY_RETENTION is %s, but an order can come again for %s: set it to that or more", retention, least)
	}
	return retention, nil
}

// deleteOldKeys frees the idempotency keys that were claimed longer ago than retention, every ten minutes until ctx ends.
// It returns nil.
func (s *Service) deleteOldKeys(ctx context.Context, retention time.Duration) error {
	for {
		// Replicas that were started together do not clean together.
		pause := time.NewTimer(keyCleanInterval/2 + rand.N(keyCleanInterval)) //nolint:gosec // jitter needs no secret
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		if _, err := postgres.DeleteOlder(ctx, s.db, "idempotency_key", "claimed_at", retention); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "old idempotency keys were not deleted, will be tried again", "error", err)
		}
	}
}
