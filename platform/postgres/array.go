package postgres

import (
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// JSON is a text to be stored as jsonb.
type JSON []byte

// element is a type that an array can consist of. A nil []byte or JSON becomes NULL, and so does an invalid NullUUID.
type element interface {
	string | []byte | JSON | uuid.UUID | uuid.NullUUID | int32 | int64 | time.Time
}

// Array returns one value of each row, as an array parameter of a statement. The statement must declare exactly the
// matching type: text[], bytea[], jsonb[], uuid[], integer[] for int32, bigint[] for int64, timestamptz[] (of microseconds)
// for times.
//
// It is encoded in PostgreSQL's binary form (array_recv in its source), because the server would spend more time on parsing
// the text form of a batch than on storing it. Only the pools of Open send a []byte in that form.
func Array[R any, V element](rows []R, value func(R) V) []byte {
	const header = 20 // dimensions, whether there are NULLs, type, length, first index
	a := make([]byte, header, header+len(rows)*(4+16))
	var v V
	binary.BigEndian.PutUint32(a[8:], typeOf(v))
	if len(rows) == 0 {
		return a[:12] // of no dimension
	}
	binary.BigEndian.PutUint32(a[0:], 1)
	binary.BigEndian.PutUint32(a[12:], uint32(len(rows)))
	binary.BigEndian.PutUint32(a[16:], 1)
	for _, r := range rows {
		start := len(a)
		a = append(a, 0xff, 0xff, 0xff, 0xff) // the length of NULL
		var null bool
		if a, null = appendValue(a, value(r)); null {
			binary.BigEndian.PutUint32(a[4:], 1)
			continue
		}
		binary.BigEndian.PutUint32(a[start:], uint32(len(a)-start-4))
	}
	return a
}

// ArrayOf is Array for rows that are the values themselves.
func ArrayOf[V element](values []V) []byte {
	return Array(values, func(v V) V { return v })
}

// typeOf returns the type of v by its number (OID) in pg_type.
func typeOf(v any) uint32 {
	switch v.(type) {
	case string:
		return 25
	case []byte:
		return 17
	case JSON:
		return 3802
	case uuid.UUID, uuid.NullUUID:
		return 2950
	case int32:
		return 23
	case int64:
		return 20
	}
	return 1184 // time.Time
}

// epoch is the zero of the server's timestamps, in microseconds since 1970.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

func appendValue(a []byte, v any) (_ []byte, null bool) {
	switch v := v.(type) {
	case string:
		return append(a, v...), false
	case []byte:
		return append(a, v...), v == nil
	case JSON:
		if v == nil {
			return a, true
		}
		const version = 1
		return append(append(a, version), v...), false
	case uuid.UUID:
		return append(a, v[:]...), false
	case uuid.NullUUID:
		if !v.Valid {
			return a, true
		}
		return append(a, v.UUID[:]...), false
	case int32:
		return binary.BigEndian.AppendUint32(a, uint32(v)), false
	case int64:
		return binary.BigEndian.AppendUint64(a, uint64(v)), false
	}
	return binary.BigEndian.AppendUint64(a, uint64(v.(time.Time).UnixMicro()-epoch)), false
}
