// Delay is a TCP proxy that delays the data of its server, as a long network path does.
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
	listen := flag.String("listen", ":853", "listen address")
	to := flag.String("to", "127.0.0.1:8853", "the server")
	by := flag.Duration("by", 15*time.Millisecond, "delay")
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

// A piece is the data of one read, and when it is due.
type piece struct {
	data []byte
	due  time.Time
}

// pass copies data, delayed, until either side ends.
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
	for p := range pieces { // to the end, so that the reader never blocks
		time.Sleep(time.Until(p.due))
		_, _ = to.Write(p.data)
	}
}
