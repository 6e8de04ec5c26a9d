package querylog

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"dotgate/gateway/wire"
)

// Frame Streams: each frame is preceded by its length. After a length of 0 comes a
// control frame, preceded by its own length.
const (
	controlAccept = 1
	controlStart  = 2
	controlStop   = 3
	controlReady  = 4
	controlFinish = 5

	fieldContentType = 1
	contentType      = "protobuf:dnstap.Dnstap"
	controlMax       = 512
)

// Fields of dnstap's messages, and their values.
const (
	tapMessage, tapType = 14, 15

	messageType, socketFamily, socketProtocol = 1, 2, 3
	queryAddress, queryPort                   = 4, 6
	queryTimeSec, queryTimeNsec, queryMessage = 8, 9, 10
	responseTimeSec, responseTimeNsec         = 12, 13
	responseMessage                           = 14

	typeMessage    = 1
	clientResponse = 6
	familyInet     = 1
	familyInet6    = 2
	protocolUDP    = 1
	protocolTCP    = 2
)

func controlFrame(kind uint32) []byte {
	body := binary.BigEndian.AppendUint32(nil, kind)
	if kind != controlStop && kind != controlFinish {
		body = binary.BigEndian.AppendUint32(body, fieldContentType)
		body = binary.BigEndian.AppendUint32(body, uint32(len(contentType)))
		body = append(body, contentType...)
	}
	frame := binary.BigEndian.AppendUint32(nil, 0)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(body)))
	return append(frame, body...)
}

// dnstapFrame returns e as a data frame.
func dnstapFrame(e *entry) []byte {
	var m []byte
	number := func(field protowire.Number, n uint64) {
		m = protowire.AppendVarint(protowire.AppendTag(m, field, protowire.VarintType), n)
	}
	octets := func(field protowire.Number, data []byte) {
		m = protowire.AppendBytes(protowire.AppendTag(m, field, protowire.BytesType), data)
	}
	moment := func(sec, nsec protowire.Number, t time.Time) {
		number(sec, uint64(t.Unix()))
		m = protowire.AppendFixed32(protowire.AppendTag(m, nsec, protowire.Fixed32Type), uint32(t.Nanosecond()))
	}
	number(messageType, clientResponse)
	if addr := e.client.Addr(); addr.IsValid() {
		family := uint64(familyInet6)
		if addr.Is4() {
			family = familyInet
		}
		number(socketFamily, family)
		octets(queryAddress, addr.AsSlice())
		if e.client.Port() != 0 {
			number(queryPort, uint64(e.client.Port()))
		}
	}
	protocol := uint64(protocolUDP)
	if e.via == wire.TCP {
		protocol = protocolTCP
	}
	number(socketProtocol, protocol)
	moment(queryTimeSec, queryTimeNsec, e.at.Add(-e.took))
	octets(queryMessage, e.packet)
	moment(responseTimeSec, responseTimeNsec, e.at)
	if !e.truncated {
		octets(responseMessage, e.reply)
	}
	var tap []byte
	tap = protowire.AppendBytes(protowire.AppendTag(tap, tapMessage, protowire.BytesType), m)
	tap = protowire.AppendVarint(protowire.AppendTag(tap, tapType, protowire.VarintType), typeMessage)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(tap))), tap...)
}

// A dnstapConn is a connection to a dnstap reader's socket.
type dnstapConn struct {
	stream
	conn net.Conn
}

// newDnstapConn does the handshake of Frame Streams.
func newDnstapConn(conn net.Conn, c *counts) (*dnstapConn, error) {
	_ = conn.SetDeadline(time.Now().Add(dialTimeout))
	if _, err := conn.Write(controlFrame(controlReady)); err != nil {
		return nil, err
	}
	if kind, err := readControl(conn); err != nil || kind != controlAccept {
		return nil, fmt.Errorf("it answers with frame %d: %w", kind, err)
	}
	if _, err := conn.Write(controlFrame(controlStart)); err != nil {
		return nil, err
	}
	return &dnstapConn{stream{w: conn, counts: c}, conn}, nil
}

func readControl(r io.Reader) (kind uint32, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	escape, n := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if escape != 0 || n < 4 || n > controlMax {
		return 0, fmt.Errorf("no control frame")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(body), nil
}

func (t *dnstapConn) put(e *entry) error { return t.add(dnstapFrame(e), 1) }

func (t *dnstapConn) close() {
	if t.flush() == nil && len(t.buf) == 0 {
		_ = t.conn.SetDeadline(time.Now().Add(dialTimeout))
		_, _ = t.conn.Write(controlFrame(controlStop))
		_, _ = readControl(t.conn) // the reader confirms that it has read all frames
	}
	t.discard()
	t.conn.Close()
}
