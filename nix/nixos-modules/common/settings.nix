# The settings of access point and executor: every flag that makes sense in a file, in camel case.
#
# `file` is a path; `private` one of a secret, which may not be in the store; `secret` a secret itself, which is
# refused with what to do `instead`; `url` may hold a password.
{ lib, role }:
let
  t = lib.types;

  text = {
    type = t.str;
  };
  many = {
    type = t.either t.str (t.listOf t.str);
  };
  switch = {
    type = t.bool;
  };
  number = {
    type = t.ints.unsigned;
  };
  file = {
    type = t.path;
    file = true;
  };
  private = file // {
    private = true;
  };
  choice = values: { type = t.enum values; };
  secret = instead: {
    type = t.str;
    secret = true;
    inherit instead;
  };
  variable =
    name: file:
    secret "write ${name}=… into the file that services.agent-harbor.${role}.environmentFile names, or set services.agent-harbor.${role}.settings.${file}";

  providers = [
    "dev"
    "files"
    "spiffe"
    "vault"
    "exec"
  ];

  shared = {
    cert = file;
    key = private;
    ca = file;
    keyPassphraseFile = private;
    strictKeyPermissions = switch;
    spiffeSocket = text;
    spiffeId = text;
    spiffeHint = text;
    devAllowRemote = switch;
    execCommand = text;
    execRefreshInterval = text;
    execTimeout = text;
    noVaultTokenCache = switch;
    logLevel = choice [
      "error"
      "warn"
      "info"
      "debug"
      "trace"
    ];
    logFormat = choice [
      "text"
      "json"
    ];
    drainTimeout = text;
  };

  own = {
    access-point = {
      fleetListen = many;
      serverIdentity = choice providers;
      executorSanUriPrefix = many;
      executorSanDns = many;
      executorSanIp = many;
      strictSvid = switch;
      duplicates = choice [
        "reject"
        "replace"
      ];
      maxExecutors = number;
      maxHandshakes = number;
      handshakeTimeout = text;
      heartbeatInterval = text;
      db = text // {
        url = true;
        variable = "AH_DB";
      };
      auditLog = text;
      httpListen = text;
      httpTokenFile = private;
      httpCert = file;
      httpKey = private;
      adminSocket = text;
    };
    executor = {
      remoteServer = many;
      expectedServerId = text;
      connectTimeout = text;
      identity = choice providers;
      name = text;
      label = {
        type = t.either (t.listOf t.str) (t.attrsOf t.str);
      };
      labelsFile = file;
      statusSocket = text;
    };
  };

  capitals = lib.stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  snake = lib.replaceStrings capitals (map (letter: "_${lib.toLower letter}") capitals);
in
{
  flat = shared // own.${role};

  vault = {
    address = many;
    pkiPath = text;
    auth = choice [
      "approle"
      "kubernetes"
      "jwt"
      "cert"
      "token"
    ];
    authMount = text;
    roleId = variable "VAULT_ROLE_ID" "vault.roleIdFile";
    roleIdFile = private;
    secretId = variable "VAULT_SECRET_ID" "vault.secretIdFile";
    secretIdFile = private;
    secretIdWrapped = switch;
    k8sRole = text;
    k8sTokenFile = private;
    jwtRole = text;
    jwtFile = private;
    certRole = text;
    token = variable "VAULT_TOKEN" "vault.tokenFile";
    tokenFile = private;
    namespace = text;
    ca = file;
    clientCert = file;
    clientKey = private;
    certCn = text;
    certSanUri = many;
    certSanDns = many;
    certSanIp = many;
    certTtl = text;
    renewalThreshold = {
      type = t.either t.str t.float;
    };
    retryMax = number;
    retryDelay = text;
  };

  # The key of the settings file.
  key =
    name: if name == "vault.address" then "vault_addr" else snake (lib.replaceStrings [ "." ] [ "_" ] name);
}
