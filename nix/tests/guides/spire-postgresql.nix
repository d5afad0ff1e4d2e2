services.spire.server = {
  dataStore = {
    type = "postgres";
    connectionString = "postgres://spire:password@db:5432/spire?sslmode=require";
  };
};
