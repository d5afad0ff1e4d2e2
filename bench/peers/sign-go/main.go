// Go's standard library verifies a request and signs a certificate of an X509-SVID's shape for it, again and again. The
// figure printed is certificates a second of CPU time.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net/url"
	"syscall"
	"time"
)

func main() {
	seconds := flag.Float64("seconds", 3, "length of the measured time")
	flag.Parse()

	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	issuer := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, issuer, issuer, authority.Public(), authority)
	check(err)
	issuer, err = x509.ParseCertificate(der)
	check(err)
	workload, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, workload)
	check(err)

	before, end, signed := used(), time.Now().Add(time.Duration(*seconds*float64(time.Second))), 0
	for time.Now().Before(end) {
		sign(request, issuer, authority)
		signed++
	}
	fmt.Println(float64(signed) / (used() - before).Seconds())
}

func sign(request []byte, issuer *x509.Certificate, authority *ecdsa.PrivateKey) {
	csr, err := x509.ParseCertificateRequest(request)
	check(err)
	check(csr.CheckSignature())
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}},
		NotBefore:             time.Now().Add(-10 * time.Second),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/workload/1"}},
	}
	_, err = x509.CreateCertificate(rand.Reader, template, issuer, csr.PublicKey, authority)
	check(err)
}

func serial() *big.Int {
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	check(err)
	return number
}

// used is the CPU time of this process so far, the garbage collector's included.
func used() time.Duration {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
