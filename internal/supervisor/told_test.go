package supervisor

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/psi-runtime/psi/internal/control"
)

// A client that reads more slowly than a reload of thousands of guests is told of gets
// every message, in order.
func TestToldMuchAtOnce(t *testing.T) {
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, file := range []*os.File{ours, theirs} {
		conn, err := net.FileConn(file)
		if err = errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns[i] = conn.(*net.UnixConn)
	}
	c := &client{conn: conns[0], log: logrus.StandardLogger(), out: make(chan message, queueLength)}
	go c.write()
	const messages = 5 * queueLength
	go func() {
		for i := range messages {
			c.awaitRoom()
			c.send(map[string]any{"number": i, "padding": string(make([]byte, 500))}, nil, false)
		}
		c.drop(errors.New("the test is over"))
	}()
	for i := range messages {
		body, err := control.ReadFrame(conns[1])
		if err != nil {
			t.Fatalf("after %d messages: %v", i, err)
		}
		var m struct{ Number int }
		if err := json.Unmarshal(body, &m); err != nil || m.Number != i {
			t.Fatalf("message %d is %s (%v)", i, body, err)
		}
		if i%100 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}
