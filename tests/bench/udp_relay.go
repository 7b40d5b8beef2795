// A plain relay of UDP for comparison: "udp_relay LISTEN TARGET" forwards the datagrams of each source address
// over a socket of its own. It neither encrypts nor authenticates, and its flows never end.
package main

import (
	"log"
	"net"
	"net/netip"
	"os"
)

const maxDatagram = 65535

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: udp_relay LISTEN TARGET")
	}
	listen, err := net.ResolveUDPAddr("udp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	target, err := net.ResolveUDPAddr("udp", os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	visitors, err := net.ListenUDP("udp", listen)
	if err != nil {
		log.Fatal(err)
	}
	flows := make(map[netip.AddrPort]*net.UDPConn)
	buffer := make([]byte, maxDatagram)
	for {
		got, visitor, err := visitors.ReadFromUDPAddrPort(buffer)
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		flow := flows[visitor]
		if flow == nil {
			flow, err = net.DialUDP("udp", nil, target)
			if err != nil {
				continue
			}
			flows[visitor] = flow
			go answer(visitors, flow, visitor)
		}
		flow.Write(buffer[:got])
	}
}

func answer(visitors, flow *net.UDPConn, visitor netip.AddrPort) {
	buffer := make([]byte, maxDatagram)
	for {
		got, err := flow.Read(buffer)
		if err == nil {
			visitors.WriteToUDPAddrPort(buffer[:got], visitor)
		}
	}
}
