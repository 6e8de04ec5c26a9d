// Delay stands before a TCP server and passes on what it says that much later, as
// a server would answer that is far away.
//
//	delay -listen :853 -to 127.0.0.1:8853 -by 15ms
package main

import (
	"flag"
	"io"
	"log"
	"net"
	"time"
)

func main() {
	listen := flag.String("listen", ":853", "where clients come")
	to := flag.String("to", "127.0.0.1:8853", "the server")
	by := flag.Duration("by", 15*time.Millisecond, "how much later")
	flag.Parse()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	for {
		client, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer client.Close()
			server, err := net.Dial("tcp", *to)
			if err != nil {
				log.Print(err)
				return
			}
			go func() {
				_, _ = io.Copy(server, client)
				server.Close()
			}()
			pass(client, server, *by)
		}()
	}
}

// A piece is what was read at once, and when it is due.
type piece struct {
	data []byte
	due  time.Time
}

// pass passes on what comes until either side ends.
func pass(to io.Writer, from io.Reader, by time.Duration) {
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			data := make([]byte, 16<<10)
			n, err := from.Read(data)
			if n > 0 {
				pieces <- piece{data[:n], time.Now().Add(by)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range pieces { // to the end, lest the reader wait
		time.Sleep(time.Until(p.due))
		_, _ = to.Write(p.data)
	}
}
