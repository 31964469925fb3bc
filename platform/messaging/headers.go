package messaging

import (
	"bufio"
	"encoding/binary"
	"net"
	"slices"
)

// What headers may be. RabbitMQ takes whatever fits into a frame from a publisher, and the library reads tables up to 32 deep with up to
// 8,192 entries. Nobody's headers need as much as this.
const (
	maxHeaderDepth   = 16
	maxHeaderEntries = 1000
)

// frameRoom is more than a frame with headers has: RabbitMQ's frame_max is 128 KiB unless somebody changes it.
const frameRoom = 160 << 10

// readableConn leaves out the headers of messages that the library cannot read. It would close the connection instead, at each delivery of
// such a message: all that has come with it would be delivered again, up to the delivery limit, and a message that is a dead letter
// already would keep others from being stored for ever.
type readableConn struct {
	net.Conn
	in      *bufio.Reader
	pass    int    // bytes that are handed on as they come
	instead []byte // what is handed on before these, of a frame that was changed
}

func readable(conn net.Conn) *readableConn {
	return &readableConn{Conn: conn, in: bufio.NewReaderSize(conn, frameRoom)}
}

// Read implements net.Conn.
func (c *readableConn) Read(b []byte) (n int, err error) {
	if c.pass == 0 && len(c.instead) == 0 {
		if err := c.look(); err != nil {
			return 0, err
		}
	}
	if len(c.instead) > 0 {
		n = copy(b, c.instead)
		c.instead = c.instead[n:]
		return n, nil
	}
	n, err = c.in.Read(b[:min(len(b), c.pass)])
	c.pass -= n
	return n, err
}

// look decides what becomes of the next frame: seven bytes, of which the last four are the payload's size, the payload, and one byte.
func (c *readableConn) look() error {
	const begin, contentHeader = 7, 2
	frame, err := c.in.Peek(begin)
	if err != nil {
		return err
	}
	size := int(binary.BigEndian.Uint32(frame[3:]))
	c.pass = begin + size + 1
	if frame[0] != contentHeader || c.pass > frameRoom {
		return nil
	}
	if frame, err = c.in.Peek(c.pass); err != nil {
		return err
	}
	payload := withoutUnreadable(frame[begin : begin+size])
	if len(payload) == size {
		return nil
	}
	c.instead = binary.BigEndian.AppendUint32(slices.Clone(frame[:3]), uint32(len(payload)))
	c.instead = append(append(c.instead, payload...), frame[begin+size])
	_, err = c.in.Discard(c.pass)
	c.pass = 0
	return err
}

// withoutUnreadable returns the payload of a content header frame, with an empty table in the place of headers that are no readable one.
func withoutUnreadable(payload []byte) []byte {
	p := fields{rest: payload}
	p.take(2 + 2 + 8) // class, weight and the body's size
	flags := p.take(2)
	if p.bad {
		return payload
	}
	const contentType, contentEncoding, headers = 1 << 7, 1 << 6, 1 << 5 // in their order
	if flags[0]&contentType != 0 {
		p.short()
	}
	if flags[0]&contentEncoding != 0 {
		p.short()
	}
	if p.bad || flags[0]&headers == 0 {
		return payload
	}
	before := payload[:len(payload)-len(p.rest)]
	after := p
	after.long()
	p.container(0, true)
	if !p.bad || after.bad {
		return payload
	}
	return slices.Concat(before, []byte{0, 0, 0, 0}, after.rest)
}

// fields reads what AMQP encodes. After something that is not as it has to be it is bad, and reads nothing.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n < 0 || n > len(f.rest) {
		f.bad = true
		return nil
	}
	taken := f.rest[:n:n]
	f.rest = f.rest[n:]
	return taken
}

func (f *fields) short() {
	if n := f.take(1); !f.bad {
		f.take(int(n[0]))
	}
}

func (f *fields) long() []byte {
	n := f.take(4)
	if f.bad {
		return nil
	}
	return f.take(int(binary.BigEndian.Uint32(n)))
}

// container reads a table, or an array, which has no names.
func (f *fields) container(depth int, named bool) {
	in := fields{rest: f.long(), bad: depth > maxHeaderDepth}
	for n := 0; len(in.rest) > 0 && !in.bad; n++ {
		if named {
			in.short()
		}
		in.value(depth)
		in.bad = in.bad || n >= maxHeaderEntries
	}
	f.bad = f.bad || in.bad
}

func (f *fields) value(depth int) {
	kind := f.take(1)
	if f.bad {
		return
	}
	switch kind[0] {
	case 'V':
	case 't', 'b', 'B':
		f.take(1)
	case 's', 'u':
		f.take(2)
	case 'I', 'i', 'f':
		f.take(4)
	case 'D':
		f.take(1 + 4)
	case 'l', 'd', 'T':
		f.take(8)
	case 'S', 'x':
		f.long()
	case 'A', 'F':
		f.container(depth+1, kind[0] == 'F')
	default:
		f.bad = true
	}
}
