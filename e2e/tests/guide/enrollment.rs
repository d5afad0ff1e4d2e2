//! The lines of the enrollment guide for production, each as it is printed there and to an enrolled executor.

use ah_e2e::Machine;

use crate::spiffe::{ACCESS_POINT, ENTRIES, Spire, entitled};

/// What the guide takes for granted: certificates in `/etc/ah`, and a script that prints some.
const SITE: &str = r#"mkdir -p /etc/ah && cd /etc/ah
openssl req -x509 -newkey ed25519 -nodes -days 30 -subj "/CN=Example CA" -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca-key.pem -out ca.pem
sign() {
    openssl req -newkey ed25519 -nodes -subj "/CN=$1" -keyout $1-key.pem -out $1.csr
    openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 9 -out $1.pem \
        -extfile <(printf "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nsubjectAltName=$2\n")
}
sign server DNS:access-point.example.com
sign executor URI:spiffe://example.org/ah/agent/executor-1
chown agent-harbor server-key.pem
chown executor executor-key.pem
cat > /usr/local/bin/get-executor-cert.sh << 'EOF'
#!/bin/sh
cat /etc/ah/executor.pem /etc/ah/executor-key.pem /etc/ah/ca.pem
EOF
chmod 755 /usr/local/bin/get-executor-cert.sh"#;

const BY_FILES: &str = "ah agent access-point --fleet-listen 127.0.0.1:4433 --server-identity files \
    --cert /etc/ah/server.pem --key /etc/ah/server-key.pem --ca /etc/ah/ca.pem";

const FILES: &str = r"ah agent enroll \
--remote-server https://access-point.example.com:4433 \
--identity files \
--cert /etc/ah/executor.pem \
--key /etc/ah/executor-key.pem \
--ca /etc/ah/ca.pem";

const EXEC: &str = r"ah agent enroll \
--remote-server https://access-point.example.com:4433 \
--identity exec \
--exec-command /usr/local/bin/get-executor-cert.sh";

const SPIFFE: &str = r"ah agent enroll \
--remote-server https://access-point.example.com:4433 \
--identity spiffe \
--spiffe-socket /run/spire/agent.sock \
--expected-server-id spiffe://example.org/ah/serve";

/// Of the troubleshooting guide.
const ENTRY: &str = r#"spire-server entry create \
-socketPath /run/spire/server.sock \
-parentID "spiffe://example.org/spire/agent/join_token/agent-1" \
-spiffeID "spiffe://example.org/ah/agent/executor-1" \
-selector "unix:user:executor""#;

/// Runs a line of the guide until it says that it is enrolled.
fn enrolls(machine: &Machine, line: &str) {
    let executor = machine.start("executor", line);
    executor.wait_for(" enrolled executor.id=spiffe://example.org/ah/agent/executor-1 ");
}

// EN-1 to EN-5, EN-7
#[test]
fn the_lines_for_production_word_for_word() {
    let Some(machine) = Machine::new() else {
        return;
    };
    machine.shell(SITE);
    let access_point = machine.start("agent-harbor", BY_FILES);
    access_point.wait_for("listening for executors");
    enrolls(&machine, FILES);
    enrolls(&machine, EXEC);
    let dates = machine.shell("cd /etc/ah; openssl x509 -in executor.pem -noout -enddate; date -u");
    assert!(dates.stdout.starts_with("notAfter="), "{dates:?}");
    drop(access_point);

    let _spire = Spire::deploy(&machine);
    machine.shell(ENTRIES);
    entitled(&machine, "executor");
    let access_point = machine.start("agent-harbor", ACCESS_POINT);
    access_point.wait_for("listening for executors");
    enrolls(&machine, SPIFFE);
    let made = machine.shell(ENTRY).stdout;
    assert!(made.contains("join_token/agent-1"), "{made}");
}
